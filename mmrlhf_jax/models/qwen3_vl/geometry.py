"""Qwen3-VL's geometry. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmrlhf_jax.models.patch_geometry import PatchGeometry


@dataclasses.dataclass(frozen=True)
class Qwen3Geometry(PatchGeometry):
    """Patches of 16 pixels with learnt positions; every patch sees its whole frame."""

    family: ClassVar[str] = "qwen3_vl"

    patch_size: int = 16
    window: int = 1
    min_pixels: int = 65536
    max_pixels: int = 16777216
    table: int = 48
