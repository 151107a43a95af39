"""Qwen2.5-VL's geometry. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmrlhf_jax.models.patch_geometry import PatchGeometry, check_timed
from mmrlhf_jax.models.video import VideoLayout


@dataclasses.dataclass(frozen=True)
class Qwen25Geometry(PatchGeometry):
    """Patches of 14 pixels, attended to in windows of 8 x 8 patches.

    `tokens_per_second` is the number of positions on the axis of time that a second of a video takes.
    """

    family: ClassVar[str] = "qwen2_5_vl"

    patch_size: int = 14
    tokens_per_second: float = 2.0

    def interval(self, video: VideoLayout) -> float:
        """`tokens_per_second` times the seconds from one patch of time to the next."""
        if video.frames <= self.frames:
            return 1.0  # of a single patch nothing depends on it
        check_timed(video)
        return self.tokens_per_second * (self.frames * video.interval)
