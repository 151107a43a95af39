"""Pairs of answers to a `question`: RLAIF-V and SPA-VL (parquet with the image inside), MMPR (JSON lines), RLHF-V.

RLHF-V (`openbmb/RLHF-V-Dataset`) has the three texts as JSON in its column `text`. The id is `id`, or `idx` in RLAIF-V and
RLHF-V. Rows with the same id, image and question are folded like MM-RLHF's pairs; a row without an id is a group of its own.
"""

from __future__ import annotations

from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.sources.fields import pop_media, pop_text
from mmrlhf_jax.data.sources.folding import PairRow, fold, pair_row
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown

_TEXTS = ("question", "chosen", "rejected")


def _parse(row: Row) -> PairRow:
    data, where = dict(row.data), row.where
    if "id" not in data and "idx" in data:
        data["id"] = data.pop("idx")
    media = pop_media(data, where)
    question, chosen, rejected = (pop_text(data, name, where) for name in _TEXTS)
    return pair_row(data, where, media, question, chosen, rejected)


def _parse_inside_text(row: Row) -> PairRow:
    try:
        text = _inside_text(row.data)
    except strict_json.NotStrict as error:
        raise UserError(f"{row.where}: field 'text': {error.msg}") from error
    if text is None:
        raise UserError(f"{row.where}: field 'text' must be JSON with {', '.join(_TEXTS)}, found {shown(row.data.get('text'))}")
    rest = {name: value for name, value in row.data.items() if name != "text"}
    if twice := sorted(text.keys() & rest.keys()):
        raise UserError(f"{row.where}: has {twice[0]!r} both as a field and inside 'text'; keep one of them")
    return _parse(Row(row.where, rest | text))


def _inside_text(row: dict[str, Any]) -> dict[str, Any] | None:
    """The object in `text`, which may be JSON text; None for any other text. Raises NotStrict like `strict_json.loads`."""
    text = row.get("text")
    if isinstance(text, str) and text.lstrip().startswith("{"):
        try:
            text = strict_json.loads(text)
        except strict_json.NotStrict:
            if not all(f'"{name}"' in text for name in _TEXTS):
                return None
            raise
        except (ValueError, RecursionError):
            return None
    return text if isinstance(text, dict) and set(_TEXTS) <= text.keys() else None


def _has_texts_inside(row: dict[str, Any]) -> bool:
    try:
        return _inside_text(row) is not None
    except strict_json.NotStrict:  # `_parse_inside_text` will report it
        return True


QUESTIONS = Format(
    "RLAIF-V, SPA-VL or MMPR rows",
    "question, chosen, rejected, image | images",
    lambda row: set(_TEXTS) <= row.keys(),
    _parse,
    fold,
    row="pair",
)
RLHF_V = Format(
    "RLHF-V",
    "text{question, chosen, rejected}, image",
    _has_texts_inside,
    _parse_inside_text,
    fold,
    row="pair",
)
