"""Margins δ of pairs, on the host: of rewards, or stored per pair, as the `ls_factor` of the released code's pair files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.finite import is_finite, number
from mmrlhf_jax.records import Pair, RankedRecord


def margins_of_pairs(record: RankedRecord, pairs: Sequence[Pair] | np.ndarray, source: str) -> np.ndarray:
    """float64[p]: δ of each of `pairs` (int[p, 2]), the number stored with the pair if `source` is "stored", otherwise the
    chosen response's reward minus the rejected one's; NaN = none. Rewards are finite in float32, so δ is in float64."""
    if source == "stored":
        return stored_margins(record, pairs)
    rewards = np.asarray([np.nan if response.reward is None else response.reward for response in record.responses], np.float64)
    chosen, rejected = np.asarray(pairs, np.int32).reshape(-1, 2).T
    return rewards[chosen] - rewards[rejected]


def stored_margins(record: RankedRecord, pairs: Sequence[Pair] | np.ndarray) -> np.ndarray:
    """float64[p]: the `ls_factor` of each of `pairs` (int[p, 2]) in the pair file; NaN if there is none."""
    stored = {pair: factor for pair, factor in _stored(record) if is_finite(factor)}
    return np.asarray([stored.get((int(c), int(r)), np.nan) for c, r in pairs], np.float64)


def _stored(record: RankedRecord) -> Iterator[tuple[Pair, Any]]:
    """Yield (pair, its `ls_factor`, of any type) from `extra["pairs"]`, as `sources.folding` writes it. A field of that name
    with other contents gives nothing."""
    field: Any = record.extra.get("pairs")
    for entry in field if isinstance(field, list) else ():
        match entry:
            case {"chosen": int(chosen), "rejected": int(rejected), "ls_factor": factor} if factor is not None:
                yield (chosen, rejected), factor


def lacking_pair_margins(examples, source: str) -> list[str]:
    """The ids of records in which a strict pair has no `ls_factor`.

    UserError, with record and pair, if an `ls_factor` is no finite number, or if a pair has two different ones.
    """

    def lacks(record: RankedRecord) -> bool:
        stored: dict[Pair, float] = {}
        for pair, factor in _stored(record):
            where = f"{source}: record {record.id!r}, pair {pair}: ls_factor"
            if stored.setdefault(pair, number(factor, where)) != factor:
                raise UserError(f"{where} is both {stored[pair]:g} and {factor:g}; remove one")
        return not set(record.pairs()) <= stored.keys()

    return [record.id for record in examples.records if lacks(record)]
