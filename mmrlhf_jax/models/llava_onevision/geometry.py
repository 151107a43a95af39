"""LLaVA-OneVision's geometry: anyres tiles of images, one tile per frame of a video. No jax here: data workers import it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.geometry import Geometry, Size
from mmrlhf_jax.models.llava_onevision import images as cutting
from mmrlhf_jax.models.llava_onevision import vision_plan
from mmrlhf_jax.models.media import VisualPlan
from mmrlhf_jax.models.video import VideoLayout

PLAIN = ("pad", "square")  # how one square tile is made of an image: padded to a square first, or squeezed


@dataclasses.dataclass(frozen=True)
class VisionGeometry(Geometry):
    """How a checkpoint cuts images: everything that decides tiles and visual tokens.

    Attributes:
        image_size: side of a tile, in pixels.
        patch_size: side of a patch, in pixels; pixels beyond the last whole patch are dropped (384 = 27 * 14 + 6).
        pinpoints: the (height, width) canvases an image may be fitted into, multiples of `image_size`.
        max_patches: `anyres_max_N`: a grid of more than about N tiles' worth of features is scaled down to that.
            None = no limit.
        anyres: False = one square tile per image, whatever its size.
        plain: without `anyres`, how that tile is made: the image `pad`ded to a square, or squeezed (`square`). The names
            are the original code's; several images of a prompt are always padded under `anyres`.
        video_newline: newline features of a video: `one_token` at its end, one per `frame`, one per pooled row
            (`grid`), or `no_token`. The names are the original code's; transformers always does `one_token`.
        pad_color: RGB around an image that is padded to a square; the tower's mean colour, int(255 * image_mean).

    Raises UserError for values that describe no possible model.
    """

    family: ClassVar[str] = "llava_onevision"
    taps: ClassVar[int] = 4

    image_size: int
    patch_size: int
    pinpoints: tuple[Size, ...]
    max_patches: int | None
    anyres: bool = True
    plain: str = "pad"
    video_newline: str = "one_token"
    pad_color: tuple[int, int, int] = (127, 127, 127)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pinpoints", tuple((int(h), int(w)) for h, w in self.pinpoints))
        if not 1 <= self.patch_size <= self.image_size:
            raise UserError(f"patch_size must be between 1 and image_size {self.image_size}, found {self.patch_size}")
        if self.anyres and not self.pinpoints:
            raise UserError("image_grid_pinpoints is empty; an anyres model needs at least one (height, width)")
        for pinpoint in self.pinpoints:
            if min(pinpoint) < 1 or any(side % self.image_size for side in pinpoint):
                raise UserError(f"image_grid_pinpoints: {pinpoint} must be multiples of image_size {self.image_size}")
        if self.max_patches is not None and self.max_patches < 1:
            raise UserError(f"vision_aspect_ratio: anyres_max_N needs N >= 1, found {self.max_patches}")
        if self.plain not in PLAIN:
            raise UserError(f"plain must be one of {', '.join(PLAIN)}, found {self.plain!r}")
        if self.video_newline not in ("one_token", "frame", "grid", "no_token"):
            raise UserError(f"video_newline must be one_token, frame, grid or no_token, found {self.video_newline!r}")

    def settings(self) -> dict[str, Any]:
        """The fields without the family's name, so that indexes and runs from before the second family stay valid."""
        return dataclasses.asdict(self)

    def low_detail(self) -> VisionGeometry:
        return within(self, 1)

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Features per tile."""
        return self.patches_per_side**2

    @property
    def features(self) -> int:
        return self.patches

    @property
    def pooled_side(self) -> int:
        """Visual tokens per side of a video frame."""
        return math.ceil(self.patches_per_side / 2)

    def plans(self, images: Sequence[Size], video: VideoLayout | None = None, most_tiles: int = 0) -> list[VisualPlan]:
        if video:
            return [vision_plan.plan_video(min(video.frames, most_tiles or video.frames), self)]
        return vision_plan.plan_images(images, within(self, most_tiles)) if images else []

    def cut_images(self, images: Sequence[Image.Image], most_tiles: int = 0) -> np.ndarray:
        if not images:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        geometry = within(self, most_tiles)
        anyres = geometry.anyres and len(images) == 1  # several images in a prompt are plain square tiles
        return np.concatenate([cutting.cut_tiles(image, geometry, anyres=anyres) for image in images])

    def cut_frames(self, frames: Sequence[Image.Image], video: VideoLayout | None = None, most_tiles: int = 0) -> np.ndarray:
        return cutting.cut_frames(frames, self)

    def smaller_media(self, images: Sequence[Size], video: VideoLayout | None = None) -> list[int]:
        """As in the base class; an empty list for several images, each of which has one tile already."""
        if video:
            return list(range(video.frames - 1, 0, -1))
        if len(images) != 1 or not self.anyres:
            return []
        now = sum(plan.tiles for plan in self.plans(images))
        return sorted({n for p in self.pinpoints if (n := self.canvas_tiles(p)) < now} | {1}, reverse=True)

    def canvas_tiles(self, pinpoint: Size) -> int:
        """The number of tiles of an image on a canvas: one of the whole image, and the canvas's grid."""
        return 1 + (pinpoint[0] // self.image_size) * (pinpoint[1] // self.image_size)


@functools.cache
def within(geometry: VisionGeometry, most_tiles: int) -> VisionGeometry:
    """The geometry without canvases on which an image would take more than `most_tiles` tiles (0 = any number)."""
    if not most_tiles or not geometry.anyres:
        return geometry
    pinpoints = tuple(p for p in geometry.pinpoints if geometry.canvas_tiles(p) <= most_tiles)
    return dataclasses.replace(geometry, pinpoints=pinpoints) if pinpoints else dataclasses.replace(geometry, anyres=False)
