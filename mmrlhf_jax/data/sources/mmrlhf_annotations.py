"""MM-RLHF `data.jsonl`: one annotated prompt per row, with lists parallel to `models_output`."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from mmrlhf_jax.data.sources.fields import media_before_text, open_record, pop_media, pop_optional_text, pop_text
from mmrlhf_jax.data.sources.rankings import check_ranking, read_rankings
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.finite import from_text, is_finite
from mmrlhf_jax.records import RankedRecord, Response

# The released data's name of each score list -> the name in this project (`records.SCORE_NAMES`).
SCORE_LISTS = {"helpfulness": "helpfulness", "faithfulness": "faithfulness", "ethical": "ethics"}


class Annotation(NamedTuple):
    """A record that has no ranks yet, its `final_ranking`, and the beginning of error messages."""

    record: RankedRecord
    ranking: Any
    where: str


def _parse(row: Row) -> Annotation:
    data, record_id, where = open_record(row)
    ranking = data.pop("final_ranking", None)
    record = _record(record_id, data, where)
    check_ranking(ranking, len(record.responses), where)
    return Annotation(record, ranking, where)


def _join(annotations: list[Annotation]) -> list[RankedRecord]:
    records = [annotation.record for annotation in annotations]
    ranks = read_rankings(
        [annotation.ranking for annotation in annotations],
        [len(record.responses) for record in records],
        [[response.mean_score for response in record.responses] for record in records],
        [annotation.where for annotation in annotations],
    )
    return [record if r is None else _with_ranks(record, r) for record, r in zip(records, ranks, strict=True)]


def _record(record_id: str, data: dict[str, Any], where: str) -> RankedRecord:
    images, video = media = pop_media(data, where)
    prompt = media_before_text(pop_text(data, "question", where), media, where)
    texts = data.pop("models_output", None)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: field 'models_output' must be a non-empty list of strings, found {shown(texts)}")
    given = [field for field in SCORE_LISTS if data.get(field) is not None]
    scores = {SCORE_LISTS[field]: _parallel(data, field, len(texts), where) for field in given}
    has_reasons = isinstance(data.get("score_reasons"), list)
    reasons = _parallel(data, "score_reasons", len(texts), where) if has_reasons else None
    return RankedRecord(
        id=record_id,
        prompt=prompt,
        responses=tuple(_response(i, text, scores, reasons, where) for i, text in enumerate(texts)),
        images=images,
        video=video,
        source=pop_optional_text(data, "source", where),
        extra={name: value for name, value in data.items() if name not in SCORE_LISTS},
    )


def _response(index: int, text: str, scores: dict[str, list], reasons: list | None, where: str) -> Response:
    given = {name: _score(values[index], name, where) for name, values in scores.items() if values[index] is not None}
    reason = reasons[index] if reasons else None
    if reason is None or isinstance(reason, str):
        return Response(text=text, scores=given or None, critique=reason or None)
    # Not a single critique but a list or object (one reason per dimension, for example); it is kept in `extra`.
    return Response(text=text, scores=given or None, extra={"score_reasons": reason})


def _parallel(data: dict[str, Any], field: str, size: int, where: str) -> list[Any]:
    values = data.pop(field)
    if not isinstance(values, list) or len(values) != size:
        raise UserError(f"{where}: field {field!r} must list {size} values, one per response, found {shown(values)}")
    return values


def _score(value: Any, name: str, where: str) -> float:
    score = from_text(value) if isinstance(value, str) else value
    if not is_finite(score):
        raise UserError(f"{where}: a score of {name!r} must be a finite number, found {shown(value)}")
    return float(score)


def _with_ranks(record: RankedRecord, ranks: list[int]) -> RankedRecord:
    ranked = zip(record.responses, ranks, strict=True)
    return record.replace_responses([dataclasses.replace(response, rank=rank) for response, rank in ranked])


FORMAT = Format(
    "MM-RLHF data.jsonl",
    "id, image|video, question, models_output[], final_ranking, helpfulness[], faithfulness[], ethical[]",
    lambda row: "models_output" in row,
    _parse,
    _join,
)
