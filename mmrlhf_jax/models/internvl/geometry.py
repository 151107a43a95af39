"""InternVL's geometry: an image as a grid of tiles and a thumbnail, a video as one tile per frame. No jax here: data workers
import it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.geometry import Geometry, Size
from mmrlhf_jax.models.internvl.images import best_grid, cut_tiles
from mmrlhf_jax.models.media import VisualPlan, make_plan
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.pieces import Piece, Special, Text, Visual

IMAGE_START, IMAGE_END = "<img>", "</img>"


@dataclasses.dataclass(frozen=True)
class TileGeometry(Geometry):
    """How a checkpoint cuts images: everything that decides tiles and visual tokens.

    Attributes:
        image_size: side of a tile, in pixels.
        patch_size: side of a patch, in pixels.
        merge: patches per side of the block that becomes one visual token.
        min_tiles, max_tiles: limits of the number of tiles of an image's grid, without the thumbnail. They apply to each image
            of a prompt (as in transformers and the original chat; the original trainer divides them among the images).
        thumbnail: whether an image of more than one tile also has a tile of the whole image.

    Raises UserError for values that describe no possible model.
    """

    family: ClassVar[str] = "internvl"
    taps: ClassVar[int] = 1

    image_size: int
    patch_size: int
    merge: int = 2
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    def __post_init__(self) -> None:
        if self.image_size % (self.patch_size * self.merge):
            raise UserError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size} x {self.merge} merged patches"
            )
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise UserError(f"from {self.min_tiles} to {self.max_tiles} tiles an image: there must be at least one")

    def low_detail(self) -> TileGeometry:
        return dataclasses.replace(self, min_tiles=1, max_tiles=1)

    @property
    def features(self) -> int:
        """Visual tokens of a tile."""
        return (self.image_size // self.patch_size // self.merge) ** 2

    def plans(self, images: Sequence[Size], video: VideoLayout | None = None, most_tiles: int = 0) -> list[VisualPlan]:
        if video:
            return [_plan_video(min(video.frames, most_tiles or video.frames), self.features)]
        most = self._most_per_image(images, most_tiles)
        return [_plan_image(self._tiles(size, most), self.features) for size in images]

    def cut_images(self, images: Sequence[Image.Image], most_tiles: int = 0) -> np.ndarray:
        sizes = [(image.height, image.width) for image in images]
        most = self._most_per_image(sizes, most_tiles)
        cut = [
            cut_tiles(image, self.image_size, self._grid(size, most), self.thumbnail)
            for image, size in zip(images, sizes, strict=True)
        ]
        return np.concatenate([np.zeros((0, self.image_size, self.image_size, 3), np.uint8), *cut])

    def cut_frames(self, frames: Sequence[Image.Image], video: VideoLayout | None = None, most_tiles: int = 0) -> np.ndarray:
        """transformers resizes videos with torchvision, whose bicubic filter may differ from Pillow's by a grey level."""
        return np.concatenate([cut_tiles(frame, self.image_size, (1, 1), thumbnail=False) for frame in frames])

    def smaller_media(self, images: Sequence[Size], video: VideoLayout | None = None) -> list[int]:
        if video:
            return list(range(video.frames - 1, 0, -1))
        totals = {sum(self._tiles(size, most) for size in images) for most in range(1, self.max_tiles + 1)}
        return sorted(totals, reverse=True)[1:]

    def _most_per_image(self, images: Sequence[Size], most_tiles: int) -> int:
        """The largest limit of grid tiles per image with which all images together keep to `most_tiles`; at least 1."""
        if not most_tiles:
            return self.max_tiles
        fitting = (
            most for most in range(self.max_tiles, 1, -1) if sum(self._tiles(size, most) for size in images) <= most_tiles
        )
        return next(fitting, 1)

    def _grid(self, size: Size, most: int) -> tuple[int, int]:
        return best_grid(*size, self.image_size, min(self.min_tiles, most), most)

    def _tiles(self, size: Size, most: int) -> int:
        columns, rows = self._grid(size, most)
        return columns * rows + (self.thumbnail and columns * rows > 1)


def _image(tokens: int) -> tuple[Piece, ...]:
    return Special(IMAGE_START), Visual(tokens), Special(IMAGE_END)


@functools.lru_cache(maxsize=256)
def _plan_image(tiles: int, features: int) -> VisualPlan:
    return _plan(tiles, features, _image(tiles * features))


@functools.lru_cache(maxsize=64)
def _plan_video(frames: int, features: int) -> VisualPlan:
    """The plan of a video: a line per frame, with its number and its tile, as in `Frame1: <img>...</img>`."""
    pieces: tuple[Piece, ...] = ()
    for number in range(1, frames + 1):
        pieces += (Text(f"Frame{number}: " if number == 1 else f"\nFrame{number}: "), *_image(features))
    return _plan(frames, features, pieces)


def _plan(tiles: int, features: int, pieces: tuple[Piece, ...]) -> VisualPlan:
    """Every feature of the tower is a visual token, in the tiles' order."""
    taps = np.arange(tiles * features, dtype=np.int32)[:, None]
    return make_plan(tiles, taps, np.ones(taps.shape, np.float32), features, pieces)
