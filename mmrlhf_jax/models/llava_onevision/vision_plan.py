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

import numpy as np

from mmrlhf_jax.errors import UserError

NEWLINE = -1  # a tap that means "the image_newline feature"
PLAIN = ("pad", "square")  # how one square tile is made of an image: padded to a square first, or squeezed

Size = tuple[int, int]  # (height, width) in pixels

_Axis = tuple[np.ndarray, np.ndarray, np.ndarray]  # lower index, upper index, weight of the upper
_Tokens = tuple[np.ndarray, np.ndarray]  # taps and weights, [..., 4]


@dataclasses.dataclass(frozen=True)
class VisionGeometry:
    """How a checkpoint cuts images: everything that decides tiles and visual tokens.

    Attributes:
        image_size: side of a tile, in pixels.
        patch_size: side of a patch, in pixels; pixels beyond the last whole patch are not seen (384 = 27 * 14 + 6).
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

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Features per tile."""
        return self.patches_per_side**2

    @property
    def pooled_side(self) -> int:
        """Visual tokens per side of a video frame."""
        return math.ceil(self.patches_per_side / 2)


@dataclasses.dataclass(frozen=True)
class VisualPlan:
    """The visual tokens of one item (an image, a video, or several joined), in prompt order.

    Attributes:
        tiles: how many tiles the tower must encode.
        taps: int32[V, 4] into the item's [tiles * patches] features, row-major tile then patch, or NEWLINE. Read-only.
        weights: float32[V, 4]. A tap with weight 0 is unused and is 0. Read-only.
        patches: features per tile; 0 only in a plan of nothing.
    """

    tiles: int
    taps: np.ndarray
    weights: np.ndarray
    patches: int = 0

    def __post_init__(self) -> None:
        if self.tiles and not self.patches:
            raise ValueError("a plan with tiles needs to know its patches per tile")

    @property
    def tokens(self) -> int:
        return len(self.taps)


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
    return _plan(frames, taps, weights, geometry.patches)


def join(plans: Sequence[VisualPlan]) -> VisualPlan:
    """One plan for items whose tiles are laid one after the other; the taps move by the tiles before them."""
    geometries = {plan.patches for plan in plans if plan.tiles}
    if len(geometries) > 1:
        raise ValueError("plans of different geometries cannot be joined")
    taps, weights, tiles = [np.zeros((0, 4), np.int32)], [np.zeros((0, 4), np.float32)], 0
    for plan in plans:
        taps.append(np.where(plan.taps == NEWLINE, NEWLINE, plan.taps + tiles * plan.patches))
        weights.append(plan.weights)
        tiles += plan.tiles
    return _plan(tiles, np.concatenate(taps), np.concatenate(weights), max(geometries, default=0))


def image_tokens(height: int, width: int, geometry: VisionGeometry) -> int:
    """`plan_image(...).tokens`, without building the plan."""
    if not geometry.anyres:
        return geometry.patches + 1
    grid = _grid(height, width, geometry)
    return geometry.patches + grid.out_rows * (grid.out_columns + 1)


def image_tiles(height: int, width: int, geometry: VisionGeometry) -> int:
    """`plan_image(...).tiles`, without building the plan."""
    if not geometry.anyres:
        return 1
    grid = _grid(height, width, geometry)
    return 1 + grid.tile_rows * grid.tile_columns


def video_tokens(frames: int, geometry: VisionGeometry) -> int:
    """`plan_video(...).tokens`, without building the plan. A video has as many tiles as frames."""
    newlines = {"one_token": 1, "frame": frames, "grid": frames * geometry.pooled_side, "no_token": 0}
    return frames * geometry.pooled_side**2 + newlines[geometry.video_newline]


def count_visual_tokens(sizes: Sequence[Size], geometry: VisionGeometry) -> int:
    """Visual tokens of a prompt with images of these sizes: the sum over `plan_images`."""
    return image_tokens(*sizes[0], geometry) if len(sizes) == 1 else len(sizes) * (geometry.patches + 1)


def count_tiles(sizes: Sequence[Size], geometry: VisionGeometry) -> int:
    """Tiles of a prompt with images of these sizes: the sum over `plan_images`."""
    return image_tiles(*sizes[0], geometry) if len(sizes) == 1 else len(sizes)


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
    return _plan(
        tiles=1 + grid.tile_rows * grid.tile_columns,
        taps=np.concatenate([whole_taps, taps.reshape(-1, 4)]),
        weights=np.concatenate([whole_weights, weights.reshape(-1, 4)]),
        patches=geometry.patches,
    )


@functools.lru_cache(maxsize=64)
def _plan_tile(geometry: VisionGeometry) -> VisualPlan:
    """One square tile and a newline."""
    return _plan(1, *_end_with_newline(*_whole_tile(geometry)), geometry.patches)


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


def _plan(tiles: int, taps: np.ndarray, weights: np.ndarray, patches: int) -> VisualPlan:
    """A plan with unused taps set to 0 and read-only arrays (plans are shared through caches)."""
    taps = np.where(weights == 0, 0, taps).astype(np.int32)
    weights = np.ascontiguousarray(weights, np.float32)
    taps.setflags(write=False)
    weights.setflags(write=False)
    return VisualPlan(tiles, taps, weights, patches)
