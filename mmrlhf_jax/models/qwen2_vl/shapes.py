"""Sizes of Qwen2-VL for measuring without a checkpoint."""

from __future__ import annotations

from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD
from mmrlhf_jax.models.patch_config import small_text
from mmrlhf_jax.models.qwen2_vl.config import Qwen2VLConfig
from mmrlhf_jax.models.qwen2_vl.geometry import Qwen2Geometry
from mmrlhf_jax.models.qwen2_vl.published import published_config
from mmrlhf_jax.models.qwen_vit import QwenVitConfig

AXES = (0,) * 8 + (1,) * 12 + (2,) * 12  # of the small one
# The published sizes, and one that keeps their proportions on a CPU.
SHAPES = {"small": None, "2b": "Qwen2-VL-2B", "7b": "Qwen2-VL-7B"}


def shape_config(shape: str) -> Qwen2VLConfig:
    """The sizes of a name in `SHAPES`; the image token of the small one is the last of its vocabulary."""
    if (name := SHAPES[shape]) is not None:
        return published_config(name)
    text = small_text(
        intermediate_size=2048,
        rope_theta=1e6,
        rope_axes=AXES,
    )
    vision = QwenVitConfig(
        192,
        768,
        layers=2,
        heads=3,
        patch_size=14,
        merge=2,
        frames=2,
        window=1,
        full_layers=(0, 1),
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        norm="layer_norm",
        gated=False,
        activation="quick_gelu",
    )
    return Qwen2VLConfig(vision, text, Qwen2Geometry(), image_token=text.vocab_size - 1)
