"""Sizes of the published LLaVA-OneVision-1.5 checkpoints, for planning where the hub is out of reach.

Sources: the description of `lmms-lab/LLaVA-OneVision-1.5-{4B,8B}-Instruct` and the sizes of Qwen3 4B and 8B. Weights are never
made up.
"""

from __future__ import annotations

import re
from typing import Any

from mmrlhf_jax.models.llavaonevision1_5.config import LlavaOnevision15Config, config_from_hf
from mmrlhf_jax.models.patch_config import published_processors
from mmrlhf_jax.models.patch_defaults import PUBLISHED_PIXELS, published_size
from mmrlhf_jax.models.qwen2 import text_sizes

# In the order of `TEXT_KEYS`.
_TEXTS = {"4b": (2560, 9728, 36, 32, 8), "8b": (4096, 12288, 36, 32, 8)}
_NAME = re.compile(r"LLaVA-(?:OneVision|OV)-1\.5-(\d+B)(?![\d.])", re.IGNORECASE)


def published_settings(size: str) -> dict[str, Any]:
    """What `config.json` of the published model of this size says, as far as it is about sizes."""
    text = text_sizes(_TEXTS[size])
    return {
        "model_type": "llavaonevision1_5",
        "image_token_id": 151655,
        "tie_word_embeddings": False,
        "text_config": {"vocab_size": 151936, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 5e6, **text},
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "text_hidden_size": text["hidden_size"],
        },
    }


def published_config(path: str) -> LlavaOnevision15Config | None:
    """The sizes of the published model that `path` names (as a hub id or a directory of that name), or None."""
    size = published_size(path, _NAME, _TEXTS)
    if size is None:
        return None
    where = f"published sizes of LLaVA-OneVision-1.5 {size.upper()}"
    return config_from_hf(published_settings(size), published_processors(PUBLISHED_PIXELS, where), where)
