"""Sizes of the published Qwen2-VL checkpoints, for planning where the hub is out of reach.

Sources: `config.json` and `preprocessor_config.json` of `Qwen/Qwen2-VL-{2B,7B,72B}-Instruct`. Weights are never made up.
"""

from __future__ import annotations

import re
from typing import Any

from mmrlhf_jax.models.patch_config import published_processors
from mmrlhf_jax.models.patch_defaults import PUBLISHED_PIXELS, published_size
from mmrlhf_jax.models.qwen2 import text_sizes
from mmrlhf_jax.models.qwen2_vl.config import Qwen2VLConfig, config_from_hf

# In the order of `TEXT_KEYS`.
_TEXTS = {
    "2b": (1536, 8960, 28, 12, 2),
    "7b": (3584, 18944, 28, 28, 4),
    "72b": (8192, 29568, 80, 64, 8),
}
_NAME = re.compile(r"Qwen2-VL-(\d+B)(?![\d.])", re.IGNORECASE)


def published_settings(size: str) -> dict[str, Any]:
    """What `config.json` of the published model of this size says, as far as it is about sizes."""
    text = text_sizes(_TEXTS[size])
    return {
        "model_type": "qwen2_vl",
        "image_token_id": 151655,
        "tie_word_embeddings": size == "2b",
        "vocab_size": 151936 if size == "2b" else 152064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        **text,
        "vision_config": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": text["hidden_size"]},
    }


def published_config(path: str) -> Qwen2VLConfig | None:
    """The sizes of the published model that `path` names (as a hub id or a directory of that name), or None."""
    size = published_size(path, _NAME, _TEXTS)
    if size is None:
        return None
    where = f"published sizes of Qwen2-VL {size.upper()}"
    return config_from_hf(published_settings(size), published_processors(PUBLISHED_PIXELS, where), where)
