"""LLaVA-OneVision-1.5's geometry. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmrlhf_jax.models.class_blocks import ClassBlockGeometry


@dataclasses.dataclass(frozen=True)
class RiceGeometry(ClassBlockGeometry):
    """Patches of 14 pixels and one frame, of which every one sees its whole frame and the frame's class token."""

    family: ClassVar[str] = "llavaonevision1_5"
    position_axes: ClassVar[int] = 1

    patch_size: int = 14
    frames: int = 1
    window: int = 1
