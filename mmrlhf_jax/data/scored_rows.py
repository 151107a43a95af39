"""Rows for scoring every group of a data set. Long groups get rows of their own, so that they do not enlarge all rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import GroupIndex, beyond_positions, build_index
from mmrlhf_jax.data.packing import MULTIPLES, auto_budget
from mmrlhf_jax.data.pipeline import index_cache
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError

# The default of `batch.slots`: rows that fit in memory for training also fit for scoring.
SLOTS = 8192
# Groups with more than so many times the median number of slots go into the long rows.
LONG = 4
SMALLEST = 128  # slots; row lengths are this times a power of two


def scored_rows(examples, encoder: GroupEncoder, slots: int = SLOTS) -> list[Rows]:
    """One or two `Rows` that together contain every group once: the ordinary groups, then the long ones in longer rows.

    No row has more than `slots` slots (rounded up to 128). Budgets are powers of two (times a constant), so that parts of a
    data set share compiled programs. UserError names the first group that does not fit, or that has a conversation beyond the
    model's positions.
    """
    index = dataclasses.replace(build_index(examples, encoder, cache=index_cache(examples)), weights=None)
    _check(index, examples, encoder, slots)
    lengths = index.sizes[:, 0]
    ordinary = lengths <= _power_of_two(np.median(lengths) * LONG, SMALLEST)
    parts = [index.keep(chosen, ()) for chosen in (ordinary, ~ordinary) if chosen.any()]
    return [Rows(examples, encoder, part, _budget(part.sizes, slots), 0) for part in parts]


def check_lengths(examples, encoder: GroupEncoder, slots: int = SLOTS) -> None:
    """UserError if a group does not fit a row of `slots` slots, or has a conversation beyond the model's positions; called
    before hours of scoring."""
    _check(build_index(examples, encoder, cache=index_cache(examples)), examples, encoder, slots)


def _check(index: GroupIndex, examples, encoder: GroupEncoder, slots: int) -> None:
    too_long = beyond_positions(index.sizes, index.groups, examples, encoder)
    for g in np.flatnonzero(too_long)[:1]:
        encoder.check_positions(examples.records[int(index.groups[g])], int(too_long[g]))
    longer = np.flatnonzero(index.sizes[:, 0] > slots)
    if len(longer):
        first = longer[0]
        raise UserError(
            f"{len(longer)} of {len(index.sizes)} records need more than {slots} slots; {examples.records[first].id!r} needs"
            f" {index.sizes[first, 0]}: give as many by --slots (memory grows with them), or leave these records out"
        )


def _budget(sizes: np.ndarray, slots: int) -> Budget:
    longest = int(_power_of_two(sizes[:, 0].max(), SMALLEST))
    derived = auto_budget(sizes, min(longest, -(-slots // SMALLEST) * SMALLEST))
    rounded = [_power_of_two(value, multiple) for value, multiple in zip(derived[1:], MULTIPLES[1:], strict=True)]
    return Budget(int(derived[0]), *map(int, rounded))


def _power_of_two(value: float, least: int) -> int:
    """The smallest of least, 2 · least, 4 · least, ... that is at least `value`; 0 for 0."""
    return 0 if value == 0 else int(least * 2 ** max(np.ceil(np.log2(value / least)), 0))
