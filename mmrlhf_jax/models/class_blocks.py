"""The geometry of towers of patches that put a class token before the patches of every frame. No jax here.

Its place is a block of its own, of whose patches only the last one counts: so blocks stay whole, and no array says where it is
but `places`, which are negative there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.geometry import Size
from mmrlhf_jax.models.media import Patches, VisualPlan, make_plan
from mmrlhf_jax.models.patch_geometry import PatchGeometry

CLASS = -1  # row and column of a class token's block


@dataclasses.dataclass(frozen=True)
class ClassBlockGeometry(PatchGeometry):
    """Images with a block for the class token before their own blocks; no visual token is made of it."""

    has_videos: ClassVar[bool] = False

    def plans(self, images: Sequence[Size], video=None, most_tiles: int = 0) -> list[VisualPlan]:
        if video:
            raise UserError("this model is supported for images only; leave out records with videos, or take another model")
        found = super().plans(images, video, most_tiles)
        return [make_plan(plan.tiles + 1, plan.taps + 1, plan.weights, plan.features, plan.pieces) for plan in found]

    def cut_images(self, images: Sequence[Image.Image], most_tiles: int = 0) -> np.ndarray:
        blocks = super().cut_images(images, most_tiles)
        grids = self._grids([(image.height, image.width) for image in images], most_tiles)
        return np.insert(blocks, _starts([rows * columns for rows, columns in grids]), 0, axis=0)

    def smaller_media(self, images: Sequence[Size], video=None) -> list[int]:
        return [tiles + len(images) for tiles in super().smaller_media(images, video)]

    def most_tiles(self, tokens: int, images: int, frames: int) -> int:
        return super().most_tiles(tokens, images, frames) + images

    def of_group(self, pixels: np.ndarray, plans: Sequence[VisualPlan], slots: np.ndarray, trunk: int) -> Patches:
        media = super().of_group(pixels, plans, slots, trunk)
        sizes = [plan.tiles - 1 for plan in plans]
        starts, image = _starts(sizes), np.repeat(np.arange(len(sizes)), sizes)
        added = {name: np.insert(getattr(media, name), starts, 0, axis=0) for name in ("grid", "grid_weights")}
        ends = {name: getattr(media, name) + image + 1 for name in ("frames", "windows")}
        whole = np.cumsum([size + 1 for size in sizes])
        return media._replace(
            places=np.insert(media.places, starts, CLASS, axis=0),
            frames=np.insert(ends["frames"], starts, whole).astype(np.int32),
            windows=np.insert(ends["windows"], starts, whole - sizes).astype(np.int32),
            **added,
        )

    def _grids(self, images: Sequence[Size], most_tiles: int) -> list[Size]:
        return super()._grids(images, max(1, most_tiles - len(images)) if most_tiles else 0)


def _starts(sizes: Sequence[int]) -> np.ndarray:
    """Where media of so many blocks each begin."""
    return np.cumsum([0, *sizes])[:-1].astype(int)
