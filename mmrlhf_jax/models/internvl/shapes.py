"""Sizes of InternVL for measuring without a checkpoint."""

from __future__ import annotations

from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.intern_vit import InternVitConfig
from mmrlhf_jax.models.internvl.config import InternVLConfig
from mmrlhf_jax.models.internvl.geometry import TileGeometry
from mmrlhf_jax.models.internvl.published import published_config

# The published sizes, and one that keeps their proportions on a CPU.
SHAPES = {"small": None, "1b": "InternVL3-1B", "2b": "InternVL3-2B", "8b": "InternVL3-8B"}


def shape_config(shape: str) -> InternVLConfig:
    """The sizes of a name in `SHAPES`; the image token of the small one is the last of its vocabulary."""
    if (name := SHAPES[shape]) is not None:
        return published_config(name)
    text = TextConfig(
        4096, 512, 2048, layers=4, heads=8, kv_heads=2, head_dim=64, tied=False, rope_theta=1e6, rms_norm_eps=1e-6
    )
    vision = InternVitConfig(192, 768, layers=2, heads=3, image_size=448, patch_size=14, feature_layers=2)
    return InternVLConfig(vision, text, TileGeometry(448, 14), image_token=text.vocab_size - 1)
