"""Numbers that belong to a pair rather than to its responses: the `ls_factor` of upstream's pair files."""

from __future__ import annotations

import numpy as np

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.records import RankedRecord


def pair_margins(record: RankedRecord, pairs: np.ndarray) -> np.ndarray:
    """float32[p]: the `ls_factor` that the pair file gave to each of `pairs` (int32[p, 2]), NaN where there is none."""
    stored = {(p["chosen"], p["rejected"]): p.get("ls_factor") for p in record.extra.get("pairs", [])}
    found = [stored.get((int(c), int(r))) for c, r in pairs]
    return np.asarray([np.nan if value is None else value for value in found], np.float32)


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
