"""Sizes of Qwen2.5-VL for measuring without a checkpoint."""

from __future__ import annotations

from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD
from mmrlhf_jax.models.patch_config import small_text
from mmrlhf_jax.models.qwen2_5_vl.config import Qwen25VLConfig
from mmrlhf_jax.models.qwen2_5_vl.geometry import Qwen25Geometry
from mmrlhf_jax.models.qwen2_5_vl.published import published_config
from mmrlhf_jax.models.qwen_vit import QwenVitConfig

AXES = (0,) * 8 + (1,) * 12 + (2,) * 12  # of the small one
# The published sizes, and one that keeps their proportions on a CPU.
SHAPES = {"small": None, "3b": "Qwen2.5-VL-3B", "7b": "Qwen2.5-VL-7B"}


def shape_config(shape: str) -> Qwen25VLConfig:
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
        512,
        layers=2,
        heads=3,
        patch_size=14,
        merge=2,
        frames=2,
        window=4,
        full_layers=(1,),
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )
    return Qwen25VLConfig(vision, text, Qwen25Geometry(), image_token=text.vocab_size - 1)
