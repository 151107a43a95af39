"""Media of a row as arrays: the pixels that the vision tower encodes, and the features that each visual slot is a sum of.

It imports only NumPy, because data workers use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrlhf_jax.pieces import Piece, Visual

NEWLINE = -1  # a tap that means "the learnt newline feature"


class Tiles(NamedTuple):
    """Media of B rows with S slots: T tiles, V visual slots, K taps each. One row, or one group, has the same arrays without B.

    A visual slot is a weighted sum of K patch features (its *taps*). In a row, `slots` = S marks an unused visual slot, and
    taps index the row's T * P features (P per tile); T * P is the newline feature, in families that have one. In a group, slots
    are indices into its token tree, taps index the group's features, and the newline is `NEWLINE`.
    """

    tiles: np.ndarray  # uint8[B, T, H, H, 3]
    slots: np.ndarray  # int32[B, V]
    taps: np.ndarray  # int32[B, V, K]
    weights: np.ndarray  # float32[B, V, K]: a tap of weight 0 is unused

    @property
    def pixels(self) -> np.ndarray:
        return self.tiles

    @property
    def units(self) -> int:
        """The number of tiles of a group or a single row."""
        return len(self.tiles)


class Patches(NamedTuple):
    """Media of B rows with S slots as patches of frames of any size: U blocks of patches, V visual slots of one tap each. One
    row, or one group, has the same arrays without B.

    A block is m x m patches, of which the model makes one feature; it is what a tile is in `Tiles`. The blocks of a frame are
    consecutive, and so are those of a window in it. An unused block is a frame and a window of its own. In a group, `frames`,
    `windows`, `slots` and `taps` are indices into the group's own blocks and slots.

    For a tower with a table of learnt positions, a patch's position is a weighted sum of four of its rows, of which `grid` has
    the numbers; P is m². For other towers P is 0.
    """

    blocks: np.ndarray  # uint8[B, U, C]: patch by patch, each by channel, time, row and column
    places: np.ndarray  # int32[B, U, 2]: row and column of the block in its frame
    frames: np.ndarray  # int32[B, U]: the first block behind the block's frame
    windows: np.ndarray  # int32[B, U]: the first block behind its window
    slots: np.ndarray  # int32[B, V]
    taps: np.ndarray  # int32[B, V, 1]
    weights: np.ndarray  # float32[B, V, 1]
    grid: np.ndarray  # int32[B, U, P, 4]
    grid_weights: np.ndarray  # float32[B, U, P, 4]

    @property
    def pixels(self) -> np.ndarray:
        return self.blocks

    @property
    def units(self) -> int:
        """The number of blocks of a group or a single row."""
        return len(self.blocks)


Media = Tiles | Patches


class Encoded(NamedTuple):
    """Media of which a model has already made its features, which several forward passes share."""

    features: np.ndarray  # float[B, F, D]: `VisionLanguage.visual_features`
    slots: np.ndarray  # int32[B, V]
    taps: np.ndarray  # int32[B, V, K]
    weights: np.ndarray  # float32[B, V, K]


def media_of(arrays: Mapping[str, Any]) -> Media:
    """The media that have arrays of these names."""
    return next(kind for kind in (Tiles, Patches) if {*kind._fields} == {*arrays})(**arrays)


@dataclasses.dataclass(frozen=True)
class VisualPlan:
    """The visual tokens of one medium (an image, a video) or of several joined ones, in the prompt's order.

    Attributes:
        tiles: the number of tiles (of blocks, in families of patches) that the tower must encode.
        taps: int32[V, K] into the medium's [tiles * features] features, row-major tile then feature, or NEWLINE. Read-only.
        weights: float32[V, K]. A tap with weight 0 is unused and is 0. Read-only.
        features: features per tile; 0 only in an empty plan.
        pieces: the pieces that replace the medium in a conversation; None: its visual tokens.
    """

    tiles: int
    taps: np.ndarray
    weights: np.ndarray
    features: int = 0
    pieces: tuple[Piece, ...] | None = None

    def __post_init__(self) -> None:
        if self.tiles and not self.features:
            raise ValueError("a plan with tiles needs to know its features per tile")
        if self.pieces is None:
            object.__setattr__(self, "pieces", (Visual(self.tokens),))

    @property
    def tokens(self) -> int:
        return len(self.taps)


def make_plan(
    tiles: int, taps: np.ndarray, weights: np.ndarray, features: int, pieces: tuple[Piece, ...] | None = None
) -> VisualPlan:
    """A plan with unused taps set to 0 and read-only arrays (plans are shared through caches)."""
    taps = np.where(weights == 0, 0, taps).astype(np.int32)
    weights = np.ascontiguousarray(weights, np.float32)
    taps.setflags(write=False)
    weights.setflags(write=False)
    return VisualPlan(tiles, taps, weights, features, pieces)


def join(plans: Sequence[VisualPlan], taps: int = 4) -> VisualPlan:
    """One plan for several media, whose tiles are concatenated and whose taps are shifted accordingly.

    `taps` is K for an empty list of plans. ValueError for plans with different numbers of features per tile.
    """
    per_tile = {plan.features for plan in plans if plan.tiles}
    if len(per_tile) > 1:
        raise ValueError("plans of different geometries cannot be joined")
    width = plans[0].taps.shape[1] if plans else taps
    numbers, weights, tiles = [np.zeros((0, width), np.int32)], [np.zeros((0, width), np.float32)], 0
    for plan in plans:
        numbers.append(np.where(plan.taps == NEWLINE, NEWLINE, plan.taps + tiles * plan.features))
        weights.append(plan.weights)
        tiles += plan.tiles
    pieces = tuple(piece for plan in plans for piece in plan.pieces)
    return make_plan(tiles, np.concatenate(numbers), np.concatenate(weights), max(per_tile, default=0), pieces)
