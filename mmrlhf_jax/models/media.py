"""Media of a row as arrays: tiles that the vision tower encodes, and which of its features every visual slot is made of.

NumPy only: data workers import this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmrlhf_jax.pieces import Piece, Visual

NEWLINE = -1  # a tap that means "the learnt newline feature"


class Tiles(NamedTuple):
    """Media of B rows with S slots: T tiles, V visual slots, K taps each. One row, or one group, has the same without B.

    A visual slot is a weighted sum of K patch features (its *taps*). In a row, `slots` = S marks an unused visual slot, and
    taps index the row's T * P features, P of a tile; T * P is the newline of families that have one. In a group, before it has
    a place in a row, slots are those of its token tree and the newline is `NEWLINE`.
    """

    tiles: np.ndarray  # uint8[B, T, H, H, 3]
    slots: np.ndarray  # int32[B, V]
    taps: np.ndarray  # int32[B, V, K]
    weights: np.ndarray  # float32[B, V, K]: a tap of weight 0 is unused

    @property
    def units(self) -> int:
        """Of a group or one row: how many tiles there are."""
        return len(self.tiles)


@dataclasses.dataclass(frozen=True)
class VisualPlan:
    """The visual tokens of one medium (an image, a video) or of several joined ones, in the prompt's order.

    Attributes:
        tiles: how many tiles the tower must encode.
        taps: int32[V, K] into the medium's [tiles * features] features, row-major tile then feature, or NEWLINE. Read-only.
        weights: float32[V, K]. A tap with weight 0 is unused and is 0. Read-only.
        features: features per tile; 0 only in a plan of nothing.
        pieces: what stands in the medium's place in a conversation; None: its visual tokens alone.
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
    """One plan for media whose tiles are laid one after the other; the taps move by the tiles before them.

    `taps` is K, for a plan of nothing.
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
