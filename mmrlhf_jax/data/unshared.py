"""The pair-expanded layout, as a baseline for benchmarks: every pair is two complete conversations without a shared prefix.

A row's arrays have two halves: slots, tiles, targets, ... of the chosen sides are in the first, those of the rejected sides in
the second. So the halves can run as two rows (`planning.unshared`), without attention between them. The row is also a valid
`RowBatch`, which any other code accepts.
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

# The number of slots of a row is a multiple of this, in both layouts.
SLOT_MULTIPLE = 8
# Arrays of pairs, which join the halves. All other arrays have two halves.
PER_PAIR = ("pairs", "pair_weights", "tie_weights", "pair_margins")
# Arrays of indices -> the size (a key of `half_sizes`) that they index into.
INDEXES = {
    "visible_until": "slots",
    "media.slots": "slots",
    "predictors": "slots",
    "ends": "slots",
    "responses": "responses",
    "media.taps": "features",
    "media.frames": "units",
    "media.windows": "units",
}
# Index arrays in which the value after the last index is special: it means unused, or the newline feature.
MARKED = ("media.slots", "ends", "responses", "media.taps")


def half_sizes(slots: int, responses: int, units: int, features: int) -> dict[str, int]:
    """The numbers of slots, responses, tiles (or blocks) and visual features in a half, by the names in INDEXES."""
    return {"slots": slots, "responses": responses, "units": units, "features": features}


def halved(batch: RowBatch) -> dict[str, Any]:
    """The arrays that have two halves, by name."""
    return {name: array for name, array in by_name(batch).items() if name not in PER_PAIR}


class Pair(NamedTuple):
    """Both sides as groups of one response, with the pair's weight, its weight as a tie, and its stored margin."""

    chosen: EncodedGroup
    rejected: EncodedGroup
    weight: float
    tie_weight: float
    margin: float


def expand(group: EncodedGroup, alone: Sequence[EncodedGroup]) -> list[Pair]:
    """The pairs of a group. `alone[r]` is response r encoded as a group of its own, with media."""
    figures = zip(group.pair_weights, group.tie_weights, group.pair_margins, strict=True)
    return [Pair(alone[c], alone[r], *map(float, own)) for (c, r), own in zip(group.pairs, figures, strict=True)]


def unshared_batch(pairs: Sequence[Pair], geometry, *, pieces_of: int | None = None, multiple: int = 1) -> tuple[RowBatch, int]:
    """(all pairs packed into rows whose halves have the length of the longest conversation, number of accumulation pieces).

    A piece has at most about `pieces_of` slots (None: one piece), and its number of rows is a multiple of `multiple`.
    """
    sizes = np.asarray([np.maximum(group_size(p.chosen), group_size(p.rejected)) for p in pairs])
    slots = round_up(int(sizes[:, 0].max()), SLOT_MULTIPLE)
    planned = plan_rows(sizes[:, :1], np.asarray([slots]), seed=0, epoch=0)
    # Budgets are those of the fullest row, so that the baseline computes no slack.
    need = np.max([sizes[row].sum(axis=0) for row in planned], axis=0)
    half = dataclasses.replace(Budget(*map(int, need)), slots=slots, pairs=max(len(row) for row in planned))
    count = len(planned)
    at_most = count if pieces_of is None else max(1, pieces_of // (2 * slots))
    pieces = -(-count // at_most)
    total = pieces * round_up(-(-count // pieces), multiple)
    chosen = [[pairs[i] for i in row] for row in planned] + [[]] * (total - count)
    return stack_rows([_row(row, half, geometry) for row in chosen]), pieces


def exact_batch(groups: Sequence[EncodedGroup], geometry) -> RowBatch:
    """One group per row, in rows that are as long as the longest group."""
    sizes = np.max([group_size(group) for group in groups], axis=0)
    budget = dataclasses.replace(Budget(*map(int, sizes)), slots=round_up(int(sizes[0]), SLOT_MULTIPLE))
    return stack_rows([assemble_row([group], budget, geometry) for group in groups])


def _row(pairs: Sequence[Pair], half: Budget, geometry) -> RowBatch:
    """A row of twice the budget, joined from the two halves, each of which is assembled as a row."""
    sides = [assemble_row([getattr(pair, side) for pair in pairs], half, geometry) for side in ("chosen", "rejected")]
    sizes = half_sizes(half.slots, half.responses, half.tiles, half.tiles * geometry.features)
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
