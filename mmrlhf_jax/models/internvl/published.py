"""Sizes of the published InternVL checkpoints that have Qwen2 language models, for planning where the hub is out of reach.

Sources: OpenGVLab `InternVL2-1B`, `InternVL2_5-{1B,4B,38B,78B}` and `InternVL3-{1B,2B,8B,14B,38B,78B}`, and of their parts
Qwen2-0.5B, Qwen2.5-{0.5B,1.5B,3B,7B,14B,32B,72B}, `InternViT-300M-448px` and `InternViT-6B-448px-V2_5`. Weights are never made
up.
"""

from __future__ import annotations

import re
from typing import Any

from mmrlhf_jax.models.internvl.config import InternVLConfig, config_from_hf
from mmrlhf_jax.models.qwen2 import text_sizes

_TOWERS: dict[str, dict[str, Any]] = {
    "300m": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "norm_type": "layer_norm",
        "attention_bias": True,
        "use_qk_norm": False,
    },
    "6b": {
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_hidden_layers": 45,
        "num_attention_heads": 25,
        "norm_type": "rms_norm",
        "attention_bias": False,
        "use_qk_norm": True,
    },
}
# In the order of `TEXT_KEYS`.
_TEXTS = {
    "0.5b": (896, 4864, 24, 14, 2),
    "1.5b": (1536, 8960, 28, 12, 2),
    "3b": (2048, 11008, 36, 16, 2),
    "7b": (3584, 18944, 28, 28, 4),
    "14b": (5120, 13824, 48, 40, 8),
    "32b": (5120, 27648, 64, 40, 8),
    "72b": (8192, 29568, 80, 64, 8),
}
# generation and size -> language model, tower
_SIZES = {
    ("2", "1b"): ("0.5b", "300m"),
    ("2.5", "1b"): ("0.5b", "300m"),
    ("2.5", "4b"): ("3b", "300m"),
    ("2.5", "38b"): ("32b", "6b"),
    ("2.5", "78b"): ("72b", "6b"),
    ("3", "1b"): ("0.5b", "300m"),
    ("3", "2b"): ("1.5b", "300m"),
    ("3", "8b"): ("7b", "300m"),
    ("3", "14b"): ("14b", "300m"),
    ("3", "38b"): ("32b", "6b"),
    ("3", "78b"): ("72b", "6b"),
}
_NAME = re.compile(r"InternVL(2_5|2|3)-(\d+B)(?![\d.])", re.IGNORECASE)


def published_settings(generation: str, size: str) -> dict[str, Any]:
    """What `config.json` of the published model of this generation and size says, as far as it is about sizes."""
    text, tower = _SIZES[generation, size]
    # The vocabulary of Qwen2's text and nine tokens for media: behind the three control tokens, or behind Qwen2.5's 22.
    vocabulary = 151655 if generation == "2" else 151674
    return {
        "model_type": "internvl",
        "image_token_id": vocabulary - 7,
        "tie_word_embeddings": False,
        "vision_config": {**_TOWERS[tower], "image_size": [448, 448], "patch_size": [14, 14]},
        "text_config": {
            **text_sizes(_TEXTS[text]),
            "model_type": "qwen2",
            "vocab_size": vocabulary,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "max_position_embeddings": 32768,
        },
    }


def published_config(path: str) -> InternVLConfig | None:
    """The sizes of the published model that `path` names (as a hub id or a directory of that name), or None."""
    found = _NAME.search(path)
    if found is None:
        return None
    key = (found[1].replace("_", "."), found[2].lower())
    if key not in _SIZES:
        return None
    return config_from_hf(published_settings(*key), None, f"published sizes of InternVL{key[0]} {key[1]}")
