"""Sizes of the published dense Qwen3-VL checkpoints, for planning where the hub is out of reach.

Sources: `config.json` and `preprocessor_config.json` of `Qwen/Qwen3-VL-{2B,4B,8B,32B}-{Instruct,Thinking}`. Weights are never
made up.
"""

from __future__ import annotations

import re
from typing import Any

from mmrlhf_jax.models.patch_config import published_processors
from mmrlhf_jax.models.patch_defaults import published_size
from mmrlhf_jax.models.qwen2 import text_sizes
from mmrlhf_jax.models.qwen3_vl.config import Qwen3VLConfig, config_from_hf
from mmrlhf_jax.models.qwen3_vl.geometry import PUBLISHED_PIXELS, PUBLISHED_VIDEO_PIXELS

# In the order of `TEXT_KEYS`.
_TEXTS = {
    "2b": (2048, 6144, 28, 16, 8),
    "4b": (2560, 9728, 36, 32, 8),
    "8b": (4096, 12288, 36, 32, 8),
    "32b": (5120, 25600, 64, 64, 8),
}
_SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
_NAME = re.compile(r"Qwen3-VL-(\d+B)(?![\d.]|-A\d)", re.IGNORECASE)


def published_settings(size: str) -> dict[str, Any]:
    """What `config.json` of the published model of this size says, as far as it is about sizes."""
    text = text_sizes(_TEXTS[size])
    is_small = size in ("2b", "4b")
    return {
        "model_type": "qwen3_vl",
        "image_token_id": 151655,
        "tie_word_embeddings": is_small,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": 151936,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5e6,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
            **text,
        },
        "vision_config": {"num_heads": 16, "out_hidden_size": text["hidden_size"], **(_SMALL if is_small else _LARGE)},
    }


def published_config(path: str) -> Qwen3VLConfig | None:
    """The sizes of the published model that `path` names (as a hub id or a directory of that name), or None."""
    size = published_size(path, _NAME, _TEXTS)
    if size is None:
        return None
    where = f"published sizes of Qwen3-VL {size.upper()}"
    return config_from_hf(
        published_settings(size), published_processors(PUBLISHED_PIXELS, where, PUBLISHED_VIDEO_PIXELS), where
    )
