"""Ranks records that have scores but no ranks, by a score that the user names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.finite import is_finite
from mmrlhf_jax.records import RankedRecord, Response, ranks_of

MEAN = "mean_score"


def rank_unranked(records: Sequence[RankedRecord], by: str, where: str, notes: list[str]) -> list[RankedRecord]:
    """The records, with ranks by a score for those that have none: the highest score is best, equal ones are tied.

    `by` is `mean_score`, a name among the responses' scores, `reward`, or a numeric field of the responses. A response without
    that score gets no rank. A note is appended to `notes`. Raises UserError if no response has the score, or if a score is not
    a finite number.
    """
    unranked = [number for number, record in enumerate(records) if all(response.rank is None for response in record.responses)]
    ranked, scored, without = list(records), 0, 0
    for number in unranked:
        record = records[number]
        scores = _scores(record, by, f"{where}: record {record.id!r}")
        scored += any(score is not None for score in scores)
        without += scores.count(None) if any(score is not None for score in scores) else 0
        pairs = zip(record.responses, ranks_of(scores), strict=True)
        ranked[number] = record.replace_responses([dataclasses.replace(response, rank=rank) for response, rank in pairs])
    if unranked and not scored:
        known = sorted({name for number in unranked for response in records[number].responses for name in _names(response)})
        raise UserError(f"{where}: no response has the score {by!r}; there is {', '.join(known) or 'none at all'}")
    missing = f"; {without} of their responses have no such score and no rank" if without else ""
    notes.append(f"{where}: {scored} of {len(records)} records had no ranks and are ranked by {by}{missing}")
    return ranked


def _names(response: Response) -> list[str]:
    fields = [name for name, value in response.extra.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    return [
        *([MEAN, *response.scores] if response.scores else []),
        *(["reward"] if response.reward is not None else []),
        *fields,
    ]


def _scores(record: RankedRecord, by: str, where: str) -> list[float | None]:
    if by != MEAN:
        return [_score(response, by, where) for response in record.responses]
    return record.mean_scores()


def _score(response: Response, by: str, where: str) -> float | None:
    if response.scores and by in response.scores:
        return response.scores[by]
    value = response.reward if by == "reward" else response.extra.get(by)
    if value is not None and not is_finite(value):
        raise UserError(f"{where}: the score {by!r} must be a finite number, found {shown(value)}")
    return value
