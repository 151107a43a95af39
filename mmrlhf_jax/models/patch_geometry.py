"""The geometry of families whose images have any size: blocks of patches, in the order of their windows. No jax here: data
workers import it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.geometry import Geometry, Size, UnlikeFrames, evenly_spaced
from mmrlhf_jax.models.grid_taps import grid_taps
from mmrlhf_jax.models.media import Media, Patches, VisualPlan, make_plan
from mmrlhf_jax.models.patch_images import cut_blocks, cut_clip, smart_resize
from mmrlhf_jax.models.patch_processors import END, START
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.pieces import Piece, Special, Visual

SHARES = 32  # steps in which `smaller_media` makes media smaller
# What is said of a video of which nothing but the number of its frames is known.
UNKNOWN = (
    "this model needs {} of a video's frames, which the data set was built without; remove it and run `mmrlhf data build` again"
)
NO_RATE = (
    "this model needs the times of a video's frames, and this folder of frames does not tell them; set data.frames_per_second"
    " (--frames-per-second) to their rate"
)
LOW_PIXELS = 512 * 512  # of an image that is wanted in low detail, as in OpenAI's interface
LEAST_BLOCKS = 16  # of a video's frame: below that, it has fewer frames instead of smaller ones


@dataclasses.dataclass(frozen=True)
class PatchGeometry(Geometry):
    """How a checkpoint resizes images: everything that decides patches and visual tokens.

    What other families call a tile is here a block of `merge` x `merge` patches, of which the model makes one feature. A patch
    of a video holds `frames` consecutive frames; what stands in their place in the tower is called a frame as well, because the
    blocks of such a patch of time see only each other.

    Attributes:
        patch_size: side of a patch, in pixels.
        merge: patches on a side of a block.
        frames: frames of a patch; an image is repeated, and so is the last frame of a video to fill its last patches.
        window: blocks on a side of the window in which most of the tower's layers attend; 1 if none does.
        table: positions on a side of the tower's table of learnt positions; 0 if it has none.
        min_pixels, max_pixels: limits of an image's area after resizing.
        video_min_pixels, video_max_pixels: those of a frame of a video.

    Raises UserError for values that describe no possible model.
    """

    taps: ClassVar[int] = 1
    position_axes: ClassVar[int] = 3
    tiles_apart: ClassVar[bool] = False
    image_size: ClassVar[int] = 448  # of the images of benchmarks

    patch_size: int
    merge: int = 2
    frames: int = 2
    window: int = 4
    min_pixels: int = 3136
    max_pixels: int = 12845056
    video_min_pixels: int = 3136
    video_max_pixels: int = 12845056
    table: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise UserError(f"from {self.min_pixels} to {self.max_pixels} pixels an image: there must be at least one")
        if not 1 <= self.video_min_pixels <= self.video_max_pixels:
            limits = f"from {self.video_min_pixels} to {self.video_max_pixels} pixels"
            raise UserError(f"{limits} a frame of a video: there must be at least one")

    def within_pixels(self, most: int | None) -> PatchGeometry:
        """As in the base class, for images and for frames of videos, which are never larger than the checkpoint's. The least
        number of pixels is never above the most."""
        if most is None:
            return self
        if most < self.side**2:
            raise UserError(f"data.max_pixels: {most} pixels are less than a block of {self.side} x {self.side}")
        return dataclasses.replace(
            self,
            min_pixels=min(self.min_pixels, most),
            max_pixels=most,
            video_min_pixels=min(self.video_min_pixels, most),
            video_max_pixels=min(self.video_max_pixels, most),
        )

    def low_detail(self) -> PatchGeometry:
        return self.within_pixels(min(self.max_pixels, max(LOW_PIXELS, self.side**2)))

    @property
    def features(self) -> int:
        return 1

    @property
    def side(self) -> int:
        """Pixels on a side of a block."""
        return self.patch_size * self.merge

    @property
    def positioned(self) -> int:
        """Patches of a block that have a learnt position: all or none."""
        return self.merge**2 if self.table else 0

    @property
    def unit_shape(self) -> tuple[int, ...]:
        return (3 * self.frames * self.side**2,)

    def video_size(self, frames: int, height: int, width: int, most_pixels: int | None = None) -> Size:
        """The (height, width) to which the frames of a video of so many frames are resized. `most_pixels` is a further limit of
        a frame's area."""
        most = self.video_max_pixels if most_pixels is None else min(self.video_max_pixels, most_pixels)
        limits = dict(min_pixels=min(self.video_min_pixels, most), max_pixels=most)
        return smart_resize(height, width, factor=self.side, **limits, what="a frame")

    def interval(self, video: VideoLayout) -> float:
        """How many positions of time the patches of a video are apart. UserError if it depends on times that are not known."""
        return 1.0

    def image_pieces(self, rows: int, columns: int) -> tuple[Piece, ...]:
        """The pieces of an image of `rows` x `columns` blocks, with the tokens around it."""
        return _enclosed(Visual(rows * columns, (rows, columns)))

    def clip_pieces(self, video: VideoLayout, rows: int, columns: int) -> tuple[Piece, ...]:
        """The pieces of a video that is taken whole, each of whose frames has `rows` x `columns` blocks: its visual tokens are
        those of all patches of time, in their order."""
        times = -(-video.frames // self.frames)
        return _enclosed(Visual(times * rows * columns, (rows, columns), times, self.interval(video)))

    def plans(self, images: Sequence[Size], video: VideoLayout | None = None, most_tiles: int = 0) -> list[VisualPlan]:
        if video:
            kept, (rows, columns) = self._clip(video, most_tiles)
            pieces = self.clip_pieces(video.keep(kept), rows, columns)
            return [_plan(rows, columns, self.window, -(-len(kept) // self.frames), pieces)]
        return [_plan(*grid, self.window, 1, self.image_pieces(*grid)) for grid in self._grids(images, most_tiles)]

    def cut_images(self, images: Sequence[Image.Image], most_tiles: int = 0) -> np.ndarray:
        grids = self._grids([(image.height, image.width) for image in images], most_tiles)
        cut = [
            cut_blocks(image, *grid, self.patch_size, self.merge, self.frames)[window_order(*grid, self.window)[0]]
            for image, grid in zip(images, grids, strict=True)
        ]
        return np.concatenate([np.zeros((0, *self.unit_shape), np.uint8), *cut])

    def cut_frames(self, frames: Sequence[Image.Image], video: VideoLayout | None = None, most_tiles: int = 0) -> np.ndarray:
        """As in the base class. UserError if the frames have different sizes."""
        sizes = sorted({(frame.height, frame.width) for frame in frames} | ({video.size} if video and video.size else set()))
        if len(sizes) > 1:
            named = " and ".join(f"{width} x {height}" for height, width in (sizes[0], sizes[-1]))
            raise UnlikeFrames(f"the frames of a video have different sizes, {named} pixels; make them one size")
        _, grid = self._clip(video or VideoLayout(len(frames), sizes[0]), most_tiles)
        order = window_order(*grid, self.window)[0]
        return np.concatenate([blocks[order] for blocks in cut_clip(frames, *grid, self.patch_size, self.merge, self.frames)])

    def smaller_media(self, images: Sequence[Size], video: VideoLayout | None = None) -> list[int]:
        """As in the base class. A video's frames become smaller, down to LEAST_BLOCKS; then it has fewer of them."""
        now = sum(plan.tokens for plan in self.plans(images, video))
        return sorted({now * share // SHARES for share in range(1, SHARES)} - {0}, reverse=True)

    def frame_numbers(self, video: VideoLayout, most_tiles: int = 0) -> list[int]:
        """As in the base class, without the repetitions of frames of a short video."""
        return self._clip(video, most_tiles)[0]

    def most_tiles(self, tokens: int, images: int, frames: int) -> int:
        """Every visual token is a block."""
        return max(1, min(tokens, max(images * (self.max_pixels // self.side**2), self.most_blocks(frames))))

    def most_blocks(self, frames: int) -> int:
        """An upper bound of the blocks of a video of so many frames."""
        return -(-frames // self.frames) * (self.video_max_pixels // self.side**2)

    def padded_tiles(self, tiles: int) -> int:
        """256, 1024, 4096, ...: blocks are many and small."""
        exponent = max(4, -(-(tiles - 1).bit_length() // 2))
        return 4**exponent

    def pairs_of_tiles(self, plans: Sequence[VisualPlan]) -> int:
        """In an image, and in each of the equal patches of time of a video, everything sees everything."""
        frames = (sum(piece.frames for piece in plan.pieces if isinstance(piece, Visual)) for plan in plans)
        return sum(plan.tiles**2 // count for plan, count in zip(plans, frames, strict=True))

    def empty(self, *, slots: int, tiles: int, visual: int) -> Patches:
        own = np.arange(1, tiles + 1, dtype=np.int32)
        return Patches(
            blocks=np.zeros((tiles, *self.unit_shape), np.uint8),
            places=np.zeros((tiles, 2), np.int32),
            frames=own,
            windows=own.copy(),
            slots=np.full(visual, slots, np.int32),
            taps=np.zeros((visual, 1), np.int32),
            weights=np.zeros((visual, 1), np.float32),
            grid=np.zeros((tiles, self.positioned, 4), np.int32),
            grid_weights=np.zeros((tiles, self.positioned, 4), np.float32),
        )

    def of_group(self, pixels: np.ndarray, plans: Sequence[VisualPlan], slots: np.ndarray, trunk: int) -> Patches:
        placed = super().of_group(pixels, plans, slots, trunk)
        visual = [piece for plan in plans for piece in plan.pieces if isinstance(piece, Visual)]
        grids = [piece.grid for piece in visual for _ in range(piece.frames)]
        places, frames, windows, first = [np.zeros((0, 2), np.int32)], [], [], 0
        grid = [np.zeros((0, self.positioned, 4), np.int32)]
        grid_weights = [np.zeros((0, self.positioned, 4), np.float32)]
        for rows, columns in grids:
            order, ends = window_order(rows, columns, self.window)
            places.append(np.stack(np.divmod(order, columns), axis=1))
            frames.append(np.full(len(order), first + len(order)))
            windows.append(first + ends)
            first += len(order)
            taps, weights = grid_taps(rows, columns, self.merge, self.table)
            grid.append(taps[order])
            grid_weights.append(weights[order])
        frames, windows = (np.concatenate([np.zeros(0), *ends]).astype(np.int32) for ends in (frames, windows))
        places = np.concatenate(places).astype(np.int32)
        grids = np.concatenate(grid), np.concatenate(grid_weights)
        return Patches(pixels, places, frames, windows, placed.slots, placed.taps, placed.weights, *grids)

    def place(self, row: Media, group: Media, *, slot: int, tile: int, visual: int) -> None:
        super().place(row, group, slot=slot, tile=tile, visual=visual)
        here = slice(tile, tile + group.units)
        row.places[here] = group.places
        row.frames[here], row.windows[here] = group.frames + tile, group.windows + tile
        row.grid[here], row.grid_weights[here] = group.grid, group.grid_weights

    def _grids(self, images: Sequence[Size], most_tiles: int) -> list[Size]:
        """(rows, columns) of every image's blocks. `most_tiles` is divided among the images by their areas after resizing."""
        limits = dict(factor=self.side, min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        sizes = [smart_resize(*size, **limits) for size in images]
        total = sum(height * width for height, width in sizes)
        if most_tiles and total > most_tiles * self.side**2:
            shares = [max(1, most_tiles * height * width // total) for height, width in sizes]
            resized = lambda size, most: smart_resize(
                *size, factor=self.side, min_pixels=min(self.min_pixels, most), max_pixels=most
            )
            sizes = [
                self._of_blocks(functools.partial(resized, size), share) for size, share in zip(images, shares, strict=True)
            ]
        return [(height // self.side, width // self.side) for height, width in sizes]

    def _clip(self, video: VideoLayout, most_tiles: int) -> tuple[list[int], Size]:
        """(the indices of the frames that are kept of a video, (rows, columns) of the blocks of each)."""
        if video.size is None:
            raise UserError(UNKNOWN.format("the size"))
        kept = video.distinct
        height, width = self.video_size(len(kept), *video.size)
        times, blocks = -(-len(kept) // self.frames), height * width // self.side**2
        if most_tiles and times * blocks > most_tiles:
            least = min(LEAST_BLOCKS, blocks)
            if most_tiles // times < least:
                times = max(1, most_tiles // least)
                kept = [kept[index] for index in evenly_spaced(len(kept), min(len(kept), times * self.frames))]
            resized = functools.partial(self.video_size, len(kept), *video.size)
            height, width = self._of_blocks(resized, max(1, most_tiles // times))
        return kept, (height // self.side, width // self.side)

    def _of_blocks(self, resized: Callable[[int], Size], most: int) -> Size:
        """The (height, width) that `resized` gives for a limit of pixels with which they are at most `most` blocks.

        The area of what is very long exceeds the limit itself, because no side is shorter than a block: there it grows with the
        limit's square root. If it is longer than `most` blocks even as its thinnest strip, it is that.
        """
        limit = most
        while True:
            height, width = resized(limit * self.side**2)
            blocks = height * width // self.side**2
            if blocks <= most or limit == 1:
                return height, width
            limit = max(1, min(limit - 1, int(limit * (most / blocks) ** 2)))


def _enclosed(visual: Visual) -> tuple[Piece, ...]:
    """A medium's visual tokens between the tokens that say where it starts and ends, so that it has them in every template."""
    return Special(START), visual, Special(END)


def check_timed(video: VideoLayout) -> None:
    """UserError unless the times of the video's frames are known."""
    if video.numbers is None:
        raise UserError(UNKNOWN.format("the times"))
    if video.times is None:
        raise UserError(NO_RATE)


@functools.lru_cache(maxsize=256)
def window_order(rows: int, columns: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(raster numbers of a frame's blocks in the tower's order, for each of them where its window ends in that order).

    Windows of `window` x `window` blocks, smaller ones at the right and lower edges, follow each other row by row, and so do
    the blocks of a window.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    across = -(-columns // window)
    number = row // window * across + column // window
    order = np.argsort(number, kind="stable").astype(np.int32)
    ends = np.cumsum(np.bincount(number))[number[order]].astype(np.int32)
    order.setflags(write=False)
    ends.setflags(write=False)
    return order, ends


@functools.lru_cache(maxsize=256)
def _plan(rows: int, columns: int, window: int, times: int, pieces: tuple[Piece, ...]) -> VisualPlan:
    """The plan of an image or a clip: visual tokens in raster order, frame by frame, of which each is the feature of one
    block."""
    of_frame = np.argsort(window_order(rows, columns, window)[0])
    taps = (np.arange(times)[:, None] * rows * columns + of_frame).reshape(-1, 1).astype(np.int32)
    return make_plan(len(taps), taps, np.ones(taps.shape, np.float32), 1, pieces)
