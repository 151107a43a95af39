"""Sizes of Qwen3-VL for measuring without a checkpoint."""

from __future__ import annotations

from mmrlhf_jax.models.patch_config import small_text
from mmrlhf_jax.models.qwen3_vl.config import Qwen3VLConfig
from mmrlhf_jax.models.qwen3_vl.geometry import Qwen3Geometry
from mmrlhf_jax.models.qwen3_vl.published import published_config
from mmrlhf_jax.models.qwen_vit import QwenVitConfig

# The published sizes, and one that keeps their proportions on a CPU.
SHAPES = {"small": None, "2b": "Qwen3-VL-2B", "4b": "Qwen3-VL-4B", "8b": "Qwen3-VL-8B"}


def shape_config(shape: str) -> Qwen3VLConfig:
    """The sizes of a name in `SHAPES`; the image token of the small one is the last of its vocabulary."""
    if (name := SHAPES[shape]) is not None:
        return published_config(name)
    text = small_text(
        intermediate_size=1536,
        rope_theta=5e6,
        attention_bias=False,
        qk_norm=True,
        deepstack=1,
        rope_axes=tuple(pair % 3 if pair < 30 else 0 for pair in range(32)),
    )
    vision = QwenVitConfig(
        192,
        768,
        layers=2,
        heads=3,
        patch_size=16,
        merge=2,
        frames=2,
        window=1,
        full_layers=(0, 1),
        image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3,
        norm="layer_norm",
        gated=False,
        activation="gelu_pytorch_tanh",
        patch_bias=True,
        table=48,
        tapped=(0,),
    )
    return Qwen3VLConfig(vision, text, Qwen3Geometry(), image_token=text.vocab_size - 1)
