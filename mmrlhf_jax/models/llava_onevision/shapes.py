"""Sizes of LLaVA-OneVision for measuring without a checkpoint."""

from __future__ import annotations

from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.models.siglip import VisionConfig

_TOWER = VisionConfig(
    hidden_size=1152, intermediate_size=4304, layers=26, heads=16, image_size=384, patch_size=14, feature_layers=26
)
_TEXT = dict(rope_theta=1e6, rms_norm_eps=1e-6)
# The published sizes, and one that keeps their proportions on a CPU.
SHAPES: dict[str, tuple[TextConfig, VisionConfig]] = {
    "small": (
        TextConfig(4096, 512, 2048, layers=4, heads=8, kv_heads=2, head_dim=64, tied=False, **_TEXT),
        VisionConfig(
            hidden_size=192, intermediate_size=768, layers=2, heads=3, image_size=384, patch_size=14, feature_layers=2
        ),
    ),
    "0.5b": (
        TextConfig(151936, 896, 4864, layers=24, heads=14, kv_heads=2, head_dim=64, tied=True, **_TEXT),
        _TOWER,
    ),
    "7b": (
        TextConfig(152064, 3584, 18944, layers=28, heads=28, kv_heads=4, head_dim=128, tied=False, **_TEXT),
        _TOWER,
    ),
}


def shape_config(shape: str) -> LlavaOnevisionConfig:
    """The sizes of `SHAPES`, with the last two tokens of the vocabulary for media."""
    text, vision = SHAPES[shape]
    geometry = VisionGeometry(vision.image_size, vision.patch_size, pinpoints=((384, 384),), max_patches=9)
    return LlavaOnevisionConfig(vision, text, geometry, text.vocab_size - 2, text.vocab_size - 1)
