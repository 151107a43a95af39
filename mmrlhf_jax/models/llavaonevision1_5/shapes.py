"""Sizes of LLaVA-OneVision-1.5 for measuring without a checkpoint."""

from __future__ import annotations

from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD
from mmrlhf_jax.models.llavaonevision1_5.config import LlavaOnevision15Config
from mmrlhf_jax.models.llavaonevision1_5.geometry import RiceGeometry
from mmrlhf_jax.models.llavaonevision1_5.published import published_config
from mmrlhf_jax.models.patch_config import small_text
from mmrlhf_jax.models.qwen_vit import QwenVitConfig

# The published sizes, and one that keeps their proportions on a CPU.
SHAPES = {"small": None, "4b": "LLaVA-OneVision-1.5-4B", "8b": "LLaVA-OneVision-1.5-8B"}


def shape_config(shape: str) -> LlavaOnevision15Config:
    """The sizes of a name in `SHAPES`; the image token of the small one is the last of its vocabulary."""
    if (name := SHAPES[shape]) is not None:
        return published_config(name)
    text = small_text(
        intermediate_size=1536,
        rope_theta=5e6,
        attention_bias=False,
        qk_norm=True,
    )
    vision = QwenVitConfig(
        192,
        768,
        layers=2,
        heads=3,
        patch_size=14,
        merge=2,
        frames=1,
        window=1,
        full_layers=(0, 1),
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        norm="layer_norm",
        norm_eps=1e-5,
        gated=False,
        activation="gelu",
        class_token=True,
    )
    return LlavaOnevision15Config(vision, text, RiceGeometry(), image_token=text.vocab_size - 1)
