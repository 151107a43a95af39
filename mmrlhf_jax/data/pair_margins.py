"""Numbers that belong to a pair rather than to its responses: the `ls_factor` of upstream's pair files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.finite import is_finite, number
from mmrlhf_jax.records import Pair, RankedRecord


def pair_margins(record: RankedRecord, pairs: np.ndarray) -> np.ndarray:
    """float32[p]: the `ls_factor` that the pair file gave to each of `pairs` (int32[p, 2]), NaN where there is none."""
    stored = {pair: factor for pair, factor in _stored(record) if is_finite(factor)}
    return np.asarray([stored.get((int(c), int(r)), np.nan) for c, r in pairs], np.float32)


def _stored(record: RankedRecord) -> Iterator[tuple[Pair, Any]]:
    """Pairs and what stands for their numbers in `extra["pairs"]`, which is `folding`'s, or means anything else."""
    field: Any = record.extra.get("pairs")
    for entry in field if isinstance(field, list) else ():
        match entry:
            case {"chosen": int(chosen), "rejected": int(rejected), "ls_factor": factor} if factor is not None:
                yield (chosen, rejected), factor


def lacking_pair_margins(examples, source: str) -> list[str]:
    """The ids of records with a strict pair that has no number of its own.

    UserError that names record and pair for an `ls_factor` that is no finite number, or not the only one of its pair.
    """

    def lacks(record: RankedRecord) -> bool:
        stored: dict[Pair, float] = {}
        for pair, factor in _stored(record):
            where = f"{source}: record {record.id!r}, pair {pair}: ls_factor"
            if stored.setdefault(pair, number(factor, where)) != factor:
                raise UserError(f"{where} is both {stored[pair]:g} and {factor:g}; remove one")
        return not set(record.pairs()) <= stored.keys()

    return [record.id for record in examples.records if lacks(record)]
