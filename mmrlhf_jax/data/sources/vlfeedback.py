"""VLFeedback (`MMInstruction/VLFeedback`): a prompt with the answers of four models, each rated in three aspects.

Ranks follow the mean of an answer's ratings, as in the authors' `run_dpo.py`; equal means are tied. An answer that lacks a
number for any aspect ("N/A", or no rating) has no rank, and so is in no pair; the others keep their ranks. The annotations,
with their rationales, are kept. `vlfeedback_80k.jsonl` lists the completions; the hub's parquet stores a list for each of their
fields. The image of a row is ID.jpg in `merged_images.zip` (--media-root merged_images.zip), as in the authors'
`VLFeedback.py`, because the JSON lines name no image, and the parquet's `img_path` is an absolute path on the authors' machine.
"""

from __future__ import annotations

import posixpath
from typing import Any

from mmrlhf_jax.data.sources.fields import (
    has_video,
    media_before_text,
    open_record,
    pop_media,
    pop_optional_text,
    pop_text,
    take_image_from,
)
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.finite import from_text, is_finite
from mmrlhf_jax.records import RankedRecord, Response, ranks_of

# VLFeedback's name of each aspect -> the name in this project (`records.SCORE_NAMES`).
ASPECTS = {"Helpfulness": "helpfulness", "Visual Faithfulness": "faithfulness", "Ethical Considerations": "ethics"}


def _parse(row: Row) -> RankedRecord:
    data, record_id, where = open_record(row)
    take_image_from(data, "img_path", lambda path: _image_name(path, None if has_video(data) else f"{record_id}.jpg"))
    images, video = media = pop_media(data, where)
    completions = data.pop("completions", None)
    if not isinstance(completions, list) or not completions or not all(isinstance(one, dict) for one in completions):
        raise UserError(f"{where}: field 'completions' must list answers with annotations, found {shown(completions)}")
    ratings = [_ratings(one, f"{where}, completion {number}") for number, one in enumerate(completions)]
    aspects = {aspect for of_one in ratings for aspect in of_one}
    means = [_mean(of_one, aspects) for of_one in ratings]
    responses = zip(completions, ratings, ranks_of(means), strict=True)
    return RankedRecord(
        id=record_id,
        prompt=media_before_text(pop_text(data, "prompt", where), media, where),
        responses=tuple(_response(*response, f"{where}, completion {number}") for number, response in enumerate(responses)),
        images=images,
        video=video,
        extra={name: value for name, value in data.items() if name != "models"},  # each completion has its model's name
    )


def _image_name(path: Any, default: str | None) -> Any:
    if path is None or path == "":
        return default
    return posixpath.basename(path) or path if isinstance(path, str) and posixpath.isabs(path) else path


def _ratings(completion: dict[str, Any], where: str) -> dict[str, float | None]:
    """Aspect -> rating, None if it is not a number."""
    annotations = {} if (annotations := completion.get("annotations")) is None else annotations
    if not isinstance(annotations, dict) or not all(isinstance(one, dict | None) for one in annotations.values()):
        raise UserError(f"{where}: field 'annotations' must have an object per aspect, found {shown(annotations)}")
    return {
        ASPECTS.get(aspect, aspect): _number((one or {}).get("Rating"), aspect, where) for aspect, one in annotations.items()
    }


def _number(rating: Any, aspect: str, where: str) -> float | None:
    """The rating as a number; None for null, "" or "N/A". UserError for any other value that is not a finite number."""
    if rating is None or (isinstance(rating, str) and rating.strip().lower() in ("", "n/a")):
        return None
    number = from_text(rating) if isinstance(rating, str) else rating
    if not is_finite(number):
        field = f"field 'Rating' of {shown(aspect, 40)}"
        raise UserError(f"{where}: {field} must be a finite number, or N/A where there is none, found {shown(rating)}")
    return float(number)


def _mean(ratings: dict[str, float | None], aspects: set[str]) -> float | None:
    values = [ratings.get(aspect) for aspect in sorted(aspects)]
    return None if not values or None in values else sum(values) / len(values)


def _response(completion: dict[str, Any], ratings: dict[str, float | None], rank: int | None, where: str) -> Response:
    rest = dict(completion)
    text, model = pop_text(rest, "response", where), pop_optional_text(rest, "model", where)
    scores = {aspect: rating for aspect, rating in ratings.items() if rating is not None}
    return Response(text=text, rank=rank, scores=scores or None, model=model, extra=rest)


FORMAT = Format(
    "VLFeedback",
    "id, prompt, img_path | image, completions[{response, model, annotations{aspect: {Rating, Rationale}}}]",
    lambda row: "completions" in row and "prompt" in row,
    _parse,
    repeats_ids=True,
)
