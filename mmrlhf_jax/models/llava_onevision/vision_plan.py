"""Which projected patch features make up each visual token: a plan made on the host, from sizes alone.

The tower turns every tile into `patches` features. A visual token is a weighted sum of at most four of them (its
*taps*): one feature for a token that is simply a patch, four for a bilinearly resized one, and the learnt newline
feature (`NEWLINE`) for the end of a row. Anyres unpadding, the `anyres_max_9` down-scaling and the pooling of video
frames are all such plans, so the device runs one gather of static shape for every image size.

The reference is transformers (`models/llava_onevision`: `pack_image_features`, `unpad_image`, `apply_pooling`;
`image_processing_utils.select_best_resolution`). It rounds differently from the original LLaVA-NeXT code in one place:
the side that unpadding keeps comes from `int(round(x, 7))` here and from `int(x)` there. Where x should be whole but
floats fall just below it, the original may drop two more rows or columns of patches: an image of 94 x 423 pixels
(height x width) has 1444 tokens here and 1334 there. Few sizes are like that (34 of the 2.4 million between 50 and
1599 pixels). Pinpoints are (height, width) here and (width, height) in the original, which changes nothing for the
published, symmetric list.

NumPy only: data workers import this file.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmrlhf_jax.models.geometry import Size
from mmrlhf_jax.models.media import NEWLINE, VisualPlan, make_plan

if TYPE_CHECKING:
    from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry

_Axis = tuple[np.ndarray, np.ndarray, np.ndarray]  # lower index, upper index, weight of the upper
_Tokens = tuple[np.ndarray, np.ndarray]  # taps and weights, [..., 4]


def best_resolution(height: int, width: int, pinpoints: Sequence[Size]) -> Size:
    """The (height, width) canvas that keeps most of the image's pixels; among equals the smallest, then the first."""
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no plan")

    def rank(pinpoint: Size) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return -kept, pinpoint[0] * pinpoint[1] - kept

    return min(pinpoints, key=rank)


def plan_image(height: int, width: int, geometry: VisionGeometry) -> VisualPlan:
    """The one image of a prompt: the squeezed whole, then the grid of tiles without its padding, a newline per row.

    `height` and `width` are the image's own, in pixels. Plans are cached and their arrays read-only.
    """
    return _plan_image(height, width, geometry) if geometry.anyres else _plan_tile(geometry)


def plan_images(sizes: Sequence[Size], geometry: VisionGeometry) -> list[VisualPlan]:
    """One plan per image of a prompt, in order; `sizes` are (height, width).

    Only an image that is alone is cut into tiles. Several images get one square tile and one newline each, as in
    transformers (`need_patching`).
    """
    if len(sizes) == 1:
        return [plan_image(*sizes[0], geometry)]
    return [_plan_tile(geometry) for _ in sizes]


@functools.lru_cache(maxsize=64)
def plan_video(frames: int, geometry: VisionGeometry) -> VisualPlan:
    """A video of `frames` tiles: every frame pooled to half its side, newlines by `geometry.video_newline`."""
    if frames < 1:
        raise ValueError(f"a video of {frames} frames has no plan")
    side, pooled = geometry.patches_per_side, geometry.pooled_side
    rows, columns = _resize_axis(side, pooled), _resize_axis(side, pooled)
    taps, weights = _bilinear(rows, columns, lambda row, column: row * side + column)
    starts = np.arange(frames, dtype=np.int32) * geometry.patches
    taps = taps + starts[:, None, None, None]
    weights = np.broadcast_to(weights, taps.shape)
    if geometry.video_newline == "grid":
        taps, weights = _end_with_newline(taps, weights)
    taps, weights = taps.reshape(frames, -1, 4), weights.reshape(frames, -1, 4)
    if geometry.video_newline == "frame":
        taps, weights = _end_with_newline(taps, weights)
    taps, weights = taps.reshape(-1, 4), weights.reshape(-1, 4)
    if geometry.video_newline == "one_token":
        taps, weights = _end_with_newline(taps, weights)
    return make_plan(frames, taps, weights, geometry.patches)


@dataclasses.dataclass(frozen=True)
class _Grid:
    """An image on its canvas, counted in tiles, then in patches: what unpadding keeps, and what down-scaling leaves."""

    tile_rows: int
    tile_columns: int
    top: int
    left: int
    rows: int
    columns: int
    out_rows: int
    out_columns: int


@functools.lru_cache(maxsize=65536)
def _grid(height: int, width: int, geometry: VisionGeometry) -> _Grid:
    canvas_height, canvas_width = best_resolution(height, width, geometry.pinpoints)
    tile_rows, tile_columns = canvas_height // geometry.image_size, canvas_width // geometry.image_size
    rows, columns = tile_rows * geometry.patches_per_side, tile_columns * geometry.patches_per_side
    top = left = 0
    # Half of what the image leaves free, rounded down, so that one padded row or column may stay (`unpad_image`).
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        left = (columns - int(round(width * (rows / height), 7))) // 2
    rows, columns = rows - 2 * top, columns - 2 * left
    out_rows, out_columns = rows, columns
    if geometry.max_patches is not None:
        ratio = math.sqrt(rows * columns / (geometry.max_patches * geometry.patches))
        if ratio > 1.1:  # a strip so thin that nothing would be left (transformers fails there) keeps one row or column
            out_rows, out_columns = max(1, int(rows // ratio)), max(1, int(columns // ratio))
    return _Grid(tile_rows, tile_columns, top, left, rows, columns, out_rows, out_columns)


@functools.lru_cache(maxsize=256)
def _plan_image(height: int, width: int, geometry: VisionGeometry) -> VisualPlan:
    grid, side = _grid(height, width, geometry), geometry.patches_per_side

    def feature(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Index of a patch of the unpadded grid; tile 0 is the squeezed whole."""
        row, column = row + grid.top, column + grid.left
        tile = 1 + row // side * grid.tile_columns + column // side
        return tile * geometry.patches + row % side * side + column % side

    rows = _resize_axis(grid.rows, grid.out_rows)
    columns = _resize_axis(grid.columns, grid.out_columns)
    taps, weights = _end_with_newline(*_bilinear(rows, columns, feature))
    whole_taps, whole_weights = _whole_tile(geometry)
    return make_plan(
        tiles=1 + grid.tile_rows * grid.tile_columns,
        taps=np.concatenate([whole_taps, taps.reshape(-1, 4)]),
        weights=np.concatenate([whole_weights, weights.reshape(-1, 4)]),
        features=geometry.patches,
    )


@functools.lru_cache(maxsize=64)
def _plan_tile(geometry: VisionGeometry) -> VisualPlan:
    """One square tile and a newline."""
    return make_plan(1, *_end_with_newline(*_whole_tile(geometry)), geometry.patches)


def _whole_tile(geometry: VisionGeometry) -> _Tokens:
    """Every patch of the first tile, as it is: taps and weights [patches, 4]."""
    taps, weights = np.zeros((geometry.patches, 4), np.int32), np.zeros((geometry.patches, 4), np.float32)
    taps[:, 0], weights[:, 0] = np.arange(geometry.patches), 1
    return taps, weights


def _resize_axis(size: int, out: int) -> _Axis:
    """Linear interpolation of one axis from `size` to `out` <= `size` points, arrays [out].

    Half-pixel centres, no antialiasing: `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
    Rounded where torch rounds in float32 (the scale; the fused multiply-add): exact weights would differ by 1e-5.
    """
    scale = np.float64(np.float32(size) / np.float32(max(out, 1)))
    source = np.maximum(scale * (np.arange(out) + 0.5) - 0.5, 0).astype(np.float32)
    low = source.astype(np.int32)
    return low, np.minimum(low + 1, size - 1), source - low.astype(np.float32)


def _bilinear(rows: _Axis, columns: _Axis, feature: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> _Tokens:
    """Taps and weights [rows, columns, 4] of a resized grid; `feature(row, column)` numbers the grid's patches."""
    top, bottom, down = (axis[:, None] for axis in rows)
    left, right, along = (axis[None, :] for axis in columns)
    taps = [feature(top, left), feature(top, right), feature(bottom, left), feature(bottom, right)]
    weights = [(1 - down) * (1 - along), (1 - down) * along, down * (1 - along), down * along]
    return np.stack(taps, axis=-1), np.stack(weights, axis=-1)


def _end_with_newline(taps: np.ndarray, weights: np.ndarray) -> _Tokens:
    """[..., n, 4] -> [..., n + 1, 4]: a newline token after every run of n tokens."""
    shape = (*taps.shape[:-2], 1, 4)
    newline, one = np.zeros(shape, taps.dtype), np.zeros(shape, weights.dtype)
    newline[..., 0], one[..., 0] = NEWLINE, 1
    return np.concatenate([taps, newline], axis=-2), np.concatenate([weights, one], axis=-2)
