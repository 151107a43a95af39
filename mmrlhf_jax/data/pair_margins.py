"""Numbers that are stored per pair, not per response: the `ls_factor` of the released code's pair files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.finite import is_finite, number
from mmrlhf_jax.records import Pair, RankedRecord


def pair_margins(record: RankedRecord, pairs: np.ndarray) -> np.ndarray:
    """float32[p]: the `ls_factor` of each of `pairs` (int32[p, 2]) in the pair file; NaN if there is none."""
    stored = {pair: factor for pair, factor in _stored(record) if is_finite(factor)}
    return np.asarray([stored.get((int(c), int(r)), np.nan) for c, r in pairs], np.float32)


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
