"""The quickstart's model: LLaVA-OneVision in every part, small enough to learn in minutes on a CPU to describe images.

Tiles of 48 pixels in patches of 24, so a square picture is 4 + 2 * (2 + 1) = 10 visual tokens.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from mmrlhf_jax.models.decoder import Decoder

VOCABULARY = 1024  # maximum number of tokens; the corpus needs fewer

TINY: dict[str, Any] = {
    "model_type": "llava_onevision",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "tie_word_embeddings": True,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[48, 48], [48, 96], [96, 48]],
}


def silence_layers(language: Decoder) -> None:
    """Zero the layers' output projections, so that initially the residual stream reaches the last layer unchanged.

    With the default initialisation, which normally a checkpoint replaces, the layers' outputs would be ten times as large as
    the embeddings.
    """
    for output in (language.layers.attention.o, language.layers.mlp.down):
        output.kernel[...] = jnp.zeros_like(output.kernel[...])
