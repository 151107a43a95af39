"""The tie of a ranking, measured on pairs that people have ordered and that the critic was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.growing.ranking import calibrated_tie
from mmrlhf_jax.records import RankedRecord


class Calibration(NamedTuple):
    """The smallest margin from which on the critic agrees with people, the share of pairs that do, and their number."""

    tie: float
    agreement: float
    pairs: int


def check_ranked(examples, named: str) -> None:
    """UserError if no pair of the data is ordered."""
    if not any(record.pairs() for record in examples.records):
        raise UserError(f"{named}: no response is ranked above another one; --calibrate takes data that people have ranked")


def calibrate(records: Sequence[RankedRecord], lines: Sequence[dict[str, Any]]) -> Calibration:
    """Of the lines with the critic's rewards. Records that it could not read are left out. UserError if no margin will do."""
    margins: list[float] = []
    for record, line in zip(records, lines, strict=True):
        if "error" not in line:
            rewards = [each["reward"] for each in line["responses"]]
            margins += [rewards[better] - rewards[worse] for better, worse in record.pairs()]
    return Calibration(*calibrated_tie(margins, [margin > 0 for margin in margins]))
