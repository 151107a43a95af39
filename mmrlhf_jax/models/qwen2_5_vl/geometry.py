"""Qwen2.5-VL's geometry. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmrlhf_jax.models.patch_geometry import PatchGeometry


@dataclasses.dataclass(frozen=True)
class QwenGeometry(PatchGeometry):
    """Patches of 14 pixels, attended to in windows of 8 x 8 patches."""

    family: ClassVar[str] = "qwen2_5_vl"

    patch_size: int = 14
