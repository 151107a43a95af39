"""Numbers that belong to a pair rather than to its responses: the `ls_factor` of upstream's pair files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.records import Pair, RankedRecord


def pair_margins(record: RankedRecord, pairs: np.ndarray) -> np.ndarray:
    """float32[p]: the `ls_factor` that the pair file gave to each of `pairs` (int32[p, 2]), NaN where there is none."""
    stored = dict(_stored(record.extra.get("pairs")))
    return np.asarray([stored.get((int(c), int(r)), np.nan) for c, r in pairs], np.float32)


def _stored(field: Any) -> Iterator[tuple[Pair, float]]:
    """Pairs and their numbers in an `extra["pairs"]`, which is `folding`'s, or a field of that name that means anything."""
    for entry in field if isinstance(field, list) else ():
        match entry:
            case {"chosen": int(chosen), "rejected": int(rejected), "ls_factor": int() | float() as factor}:
                yield (chosen, rejected), float(factor)


def check_pair_margins(examples, source: str, instead: str) -> None:
    """Raise UserError that counts the records with a strict pair that has no number of its own."""

    def lacks(record: RankedRecord) -> bool:
        margins = pair_margins(record, np.asarray(record.pairs(), np.int32).reshape(-1, 2))
        return bool(np.isnan(margins).any())

    lacking = [record.id for record in examples.records if lacks(record)]
    if lacking:
        raise UserError(
            f"{source}: {len(lacking)} of {len(examples)} records have pairs without `ls_factor`"
            f" (the first is {lacking[0]!r}); {instead}"
        )
