"""Qwen3-VL's geometry. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmrlhf_jax.models.geometry import Size
from mmrlhf_jax.models.patch_geometry import PatchGeometry, check_timed
from mmrlhf_jax.models.patch_images import smart_resize_clip
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.pieces import Piece, Text

# Of the processors of published checkpoints.
PUBLISHED_PIXELS = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}
PUBLISHED_VIDEO_PIXELS = PUBLISHED_PIXELS | {"size": {"shortest_edge": 4096, "longest_edge": 25165824}}  # of all frames


@dataclasses.dataclass(frozen=True)
class Qwen3Geometry(PatchGeometry):
    """Patches of 16 pixels with learnt positions; every patch sees its whole frame.

    `video_min_pixels` and `video_max_pixels` are limits of all frames of a video together; `most_frame_pixels` is one of each
    frame's area. Every patch of time of a video is preceded by its time, as a text.
    """

    family: ClassVar[str] = "qwen3_vl"

    patch_size: int = 16
    window: int = 1
    min_pixels: int = 65536
    max_pixels: int = 16777216
    video_min_pixels: int = 4096
    video_max_pixels: int = 25165824
    table: int = 48
    most_frame_pixels: int | None = None

    def within_pixels(self, most: int | None) -> Qwen3Geometry:
        """As in the base class; of a video it is a further limit, of each frame."""
        if most is None:
            return self
        of_videos = dict(video_min_pixels=self.video_min_pixels, video_max_pixels=self.video_max_pixels)
        return dataclasses.replace(super().within_pixels(most), **of_videos, most_frame_pixels=most)

    def video_size(self, frames: int, height: int, width: int, most_pixels: int | None = None) -> Size:
        limits = [limit for limit in (most_pixels, self.most_frame_pixels) if limit is not None]
        most = min([self.video_max_pixels, *(limit * max(frames, self.frames) for limit in limits)])
        sides = dict(depth=self.frames, factor=self.side)
        return smart_resize_clip(frames, height, width, **sides, min_pixels=min(self.video_min_pixels, most), max_pixels=most)

    def clip_pieces(self, video: VideoLayout, rows: int, columns: int) -> tuple[Piece, ...]:
        """Every patch of time as an image behind the mean of the times of its first and its last frame."""
        check_timed(video)
        times = [*video.times, *video.times[-1:] * (-video.frames % self.frames)]
        pieces: list[Piece] = []
        for first in range(0, len(times), self.frames):
            time = (times[first] + times[first + self.frames - 1]) / 2
            pieces += [Text(f"<{time:.1f} seconds>"), *self.image_pieces(rows, columns)]
        return tuple(pieces)

    def most_blocks(self, frames: int) -> int:
        """As in the base class. The limit counts fewer frames than the patches of time hold if the last patch is not full."""
        counts = range(self.frames, max(self.frames, frames) + 1)
        counted = lambda count: min(count, round(count / self.frames) * self.frames)
        of_frame = lambda count: self.video_max_pixels // (counted(count) * self.side**2)
        return max(-(-count // self.frames) * of_frame(count) for count in counts)
