"""The project's own JSONL form: one ranking group per row (see `mmrlhf_jax.records`), or one prompt without responses."""

from __future__ import annotations

import functools
from typing import Any

from mmrlhf_jax.data.sources.fields import check_is_no_picture
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.records import RankedRecord, record_from_json


def _matches(row: dict[str, Any]) -> bool:
    # A row with a prompt that matches no other format is taken for this one, so that the error names its missing fields.
    return "responses" in row or ("prompt" in row and not row.keys() & {"chosen", "rejected", "models_output"})


def _parse(row: Row, prompt_only: bool = False) -> RankedRecord:
    for name in ("images", "image", "video"):
        value = row.data.get(name)
        for item in value if isinstance(value, list) else [value]:
            check_is_no_picture(item, name, row.where)
    return record_from_json(row.data, row.where, prompt_only=prompt_only)


FORMAT = Format("ranking groups", "id, images|video, prompt, responses[{text, rank, ...}]", _matches, _parse)
PROMPTS = Format(
    "prompts", "id, images|video, prompt, responses (or none)", _matches, functools.partial(_parse, prompt_only=True)
)
