"""Rows of a pass that scores every group of a data set: one long group must not set the size of all rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import GroupIndex, build_index
from mmrlhf_jax.data.packing import MULTIPLES, auto_budget
from mmrlhf_jax.data.pipeline import index_cache
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError

# The default of `batch.slots`: what training keeps in memory, scoring does too.
SLOTS = 8192
# Groups of more than so many times the median's slots do not share rows with the others.
LONG = 4
SMALLEST = 128


def scored_rows(examples, encoder: GroupEncoder, slots: int = SLOTS) -> list[Rows]:
    """Rows over every group, each group in one of them: the ordinary ones first, then long ones in longer rows.

    No row has more than `slots` slots (rounded up to 128). What rows take of anything is a power of two, so that pieces of one
    data set share their compiled programs. UserError names the first group that does not fit.
    """
    index = dataclasses.replace(build_index(examples, encoder, cache=index_cache(examples)), weights=None)
    _check(index, examples, slots)
    lengths = index.sizes[:, 0]
    ordinary = lengths <= _power_of_two(np.median(lengths) * LONG, SMALLEST)
    parts = [index.keep(chosen, ()) for chosen in (ordinary, ~ordinary) if chosen.any()]
    return [Rows(examples, encoder, part, _budget(part.sizes, slots), 0) for part in parts]


def check_lengths(examples, encoder: GroupEncoder, slots: int = SLOTS) -> None:
    """UserError where a group does not fit a row of `slots` slots: to be found out before hours of scoring."""
    _check(build_index(examples, encoder, cache=index_cache(examples)), examples, slots)


def _check(index: GroupIndex, examples, slots: int) -> None:
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
    """The least of least, 2 · least, 4 · least, ... that is not below `value`; 0 of 0."""
    return 0 if value == 0 else int(least * 2 ** max(np.ceil(np.log2(value / least)), 0))
