"""Sizes of the published LLaVA-OneVision checkpoints, for planning where the hub is out of reach. Weights are never made up.

Sources: the `config.json` files of `llava-hf/llava-onevision-qwen2-{0.5b,7b,72b}-ov-hf` and of Qwen2 0.5B, 7B and 72B.
"""

from __future__ import annotations

import re
from typing import Any

from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig, config_from_hf

_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_TEXT = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1e6}
_SIZES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "vocab_size": 152000,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": {
        "vocab_size": 152128,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "72b": {
        "vocab_size": 152128,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
_NAME = re.compile(r"llava-(?:onevision-qwen2|ov)-(0\.5b|7b|72b)|MM-RLHF-Reward-(7b)", re.IGNORECASE)


def published_settings(size: str) -> dict[str, Any]:
    """What `config.json` of the published model of this size says, as far as it is about sizes."""
    return {
        "vision_config": _TOWER,
        "text_config": _TEXT | _SIZES[size],
        "tie_word_embeddings": _SIZES[size]["tie_word_embeddings"],
        "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
        "vision_aspect_ratio": "anyres_max_9",
    }


def published_config(path: str) -> LlavaOnevisionConfig | None:
    """The sizes of the published model that `path` names (as a hub id or a directory of that name), or None."""
    found = _NAME.search(path)
    if found is None:
        return None
    size = (found[1] or found[2]).lower()
    return config_from_hf(published_settings(size), None, f"published sizes of LLaVA-OneVision {size}")
