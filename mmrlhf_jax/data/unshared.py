"""The layout that pair-expanded trainers use, to measure against: every pair is two complete conversations that share nothing.

A row's arrays have two halves. Its slots, tiles, targets, ... of the chosen sides stand in the first, those of the rejected
sides in the second, so that the halves can run as two rows (`planning.unshared`) and no attention is spent between them. The
row is also an ordinary one: whatever runs on `RowBatch` runs on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrlhf_jax.data.packing import plan_rows
from mmrlhf_jax.data.rows import (
    Budget,
    EncodedGroup,
    RowBatch,
    assemble_row,
    by_name,
    from_names,
    group_size,
    round_up,
    stack_rows,
)

# Slots of a row are a multiple of this, in either layout.
SLOT_MULTIPLE = 8
# Pairs join the halves; every other array stands in two of them.
PER_PAIR = ("pairs", "pair_weights", "tie_weights", "pair_margins")
# What the entries of those arrays that are indices count (`half_sizes`).
INDEXES = {
    "visible_until": "slots",
    "media.slots": "slots",
    "predictors": "slots",
    "ends": "slots",
    "responses": "responses",
    "media.taps": "features",
}
# Those in which the number after the last index has a meaning of its own: unused, or the newline.
MARKED = ("media.slots", "ends", "responses", "media.taps")


def half_sizes(slots: int, responses: int, features: int) -> dict[str, int]:
    """How many slots, responses and patch features a half has."""
    return {"slots": slots, "responses": responses, "features": features}


def halved(batch: RowBatch) -> dict[str, Any]:
    """The arrays that stand in two halves, by their names."""
    return {name: array for name, array in by_name(batch).items() if name not in PER_PAIR}


class Pair(NamedTuple):
    """Both sides as groups of one response, what the pair weighs, in order or as a tie, and its own margin."""

    chosen: EncodedGroup
    rejected: EncodedGroup
    weight: float
    tie_weight: float
    margin: float


def expand(group: EncodedGroup, alone: Sequence[EncodedGroup]) -> list[Pair]:
    """The pairs of a group. `alone[r]` is response r's conversation as a group of its own, media included."""
    figures = zip(group.pair_weights, group.tie_weights, group.pair_margins, strict=True)
    return [Pair(alone[c], alone[r], *map(float, own)) for (c, r), own in zip(group.pairs, figures, strict=True)]


def unshared_batch(pairs: Sequence[Pair], geometry, *, pieces_of: int | None = None, multiple: int = 1) -> tuple[RowBatch, int]:
    """All pairs as rows of the length of the longest conversation, as few as their lengths allow, and in how many pieces.

    A piece holds about `pieces_of` slots at most (None: all rows are one piece), its rows are a `multiple`.
    """
    sizes = np.asarray([np.maximum(group_size(p.chosen), group_size(p.rejected)) for p in pairs])
    slots = round_up(int(sizes[:, 0].max()), SLOT_MULTIPLE)
    planned = plan_rows(sizes[:, :1], np.asarray([slots]), seed=0, epoch=0)
    # Budgets are what the fullest row needs, so that this layout pays for no slack.
    need = np.max([sizes[row].sum(axis=0) for row in planned], axis=0)
    half = dataclasses.replace(Budget(*map(int, need)), slots=slots, pairs=max(len(row) for row in planned))
    count = len(planned)
    at_most = count if pieces_of is None else max(1, pieces_of // (2 * slots))
    pieces = -(-count // at_most)
    total = pieces * round_up(-(-count // pieces), multiple)
    chosen = [[pairs[i] for i in row] for row in planned] + [[]] * (total - count)
    return stack_rows([_row(row, half, geometry) for row in chosen]), pieces


def exact_batch(groups: Sequence[EncodedGroup], geometry) -> RowBatch:
    """One group a row, in rows no longer than the longest group needs."""
    sizes = np.max([group_size(group) for group in groups], axis=0)
    budget = dataclasses.replace(Budget(*map(int, sizes)), slots=round_up(int(sizes[0]), SLOT_MULTIPLE))
    return stack_rows([assemble_row([group], budget, geometry) for group in groups])


def _row(pairs: Sequence[Pair], half: Budget, geometry) -> RowBatch:
    """The two halves, each laid out as a row of its own, joined into one row of twice the budget."""
    sides = [assemble_row([getattr(pair, side) for pair in pairs], half, geometry) for side in ("chosen", "rejected")]
    sizes = half_sizes(half.slots, half.responses, half.tiles * geometry.features)
    first, second = map(halved, sides)

    def joined(name: str) -> np.ndarray:
        values = [first[name], second[name]]
        if name in INDEXES:
            size, unused = sizes[INDEXES[name]], name in MARKED
            moved = [v + i * size for i, v in enumerate(values)]
            values = [np.where(unused & (v == size), 2 * size, m) for v, m in zip(values, moved, strict=True)]
        return np.concatenate(values).astype(first[name].dtype)

    per_pair = {
        "pairs": np.zeros((half.pairs, 2), np.int32),
        "pair_weights": np.zeros(half.pairs, np.float32),
        "tie_weights": np.zeros(half.pairs, np.float32),
        "pair_margins": np.full(half.pairs, np.nan, np.float32),
    }
    for i, pair in enumerate(pairs):
        per_pair["pairs"][i] = i, half.responses + i
        for name, value in zip(PER_PAIR[1:], pair[2:], strict=True):
            per_pair[name][i] = value
    return from_names({name: joined(name) for name in first} | per_pair)
