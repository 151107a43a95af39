"""What an evaluation has found of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mmrlhf_jax.data.rewarded import Scored
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Records with their rewards, in the order of the data.

    Attributes:
        scored: the records, and why some have no rewards.
        examples: where their media are.
        places: the index in `examples` of each record; None for one that it does not have.
    """

    scored: Sequence[Scored]
    examples: Any
    places: Sequence[int | None]

    @property
    def records(self) -> list[RankedRecord]:
        return [each.record for each in self.scored]

    @property
    def cut_off(self) -> int:
        """The number of responses of which a critique was cut off."""
        return sum(len(each.truncated) for each in self.scored)

    def check(self) -> None:
        """Say how many records are not scored, or in a part of their responses. UserError if none is."""
        reasons = [_with_record(each) for each in self.scored if each.reason is not None]
        if all(response.reward is None for record in self.records for response in record.responses):
            first = f"; the first: {reasons[0]}" if reasons else ""
            raise UserError(f"none of {len(self.scored)} records can be scored{first}")
        if reasons:
            say(f"{len(reasons)} of {len(self.scored)} records have responses without a reward; the first: {reasons[0]}")


def _with_record(scored: Scored) -> str:
    """Why a record has no reward. Reasons from an engine name the record, those in score files do not."""
    name = f"record {shown(scored.record.id)}"
    return scored.reason if name in scored.reason else f"{name}: {scored.reason}"
