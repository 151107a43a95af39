"""What the files of several families of patches leave out alike. No jax here."""

from __future__ import annotations

import re
from collections.abc import Collection

# The language model's sizes in `configuration_qwen2_vl.py` and `configuration_qwen2_5_vl.py` of transformers; published files
# have others.
TEXT_DEFAULTS = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
SECTIONS = (16, 24, 24)  # pairs of dimensions that time, row and column rotate
PUBLISHED_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}  # of an image, in published image processors


def published_size(path: str, name: re.Pattern[str], known: Collection[str]) -> str | None:
    """The size, as "7b", of the published model that `path` names: what the first group of `name` finds there. None if that is
    none of `known`."""
    found = name.search(path)
    return found[1].lower() if found is not None and found[1].lower() in known else None
