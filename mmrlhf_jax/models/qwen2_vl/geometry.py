"""Qwen2-VL's geometry. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmrlhf_jax.models.patch_geometry import PatchGeometry


@dataclasses.dataclass(frozen=True)
class Qwen2Geometry(PatchGeometry):
    """Patches of 14 pixels, of which every one sees its whole frame."""

    family: ClassVar[str] = "qwen2_vl"

    patch_size: int = 14
    window: int = 1
