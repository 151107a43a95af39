"""Files with verdicts, of our page and of other tools; which one a file is of is seen from its content.

Our page writes a line of JSON per record (an answer may have "text" instead of "digest", in a file that is made by hand):

    {"id": ..., "prompt": DIGEST, "answers": [{"digest": ..., "rating": 1 to 5} or {"digest": ..., "same_as_above": true}],
     "who": ..., "when": ..., "tool": "page", "reason": ...}
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import exists, read_bytes
from mmrlhf_jax.growing import argilla, label_studio
from mmrlhf_jax.growing.directory import numbered_lines
from mmrlhf_jax.growing.verdicts import Rated, Said, rating_of, shown_text

PAGE = "page"


def read_verdicts(path: epath.PathLike) -> Iterator[Said]:
    """Yield what people say in a file, or in the folder that Argilla's `to_disk` makes. UserError for what is neither."""
    path = epath.Path(path)
    if path.is_dir():
        if not exists(path / "records.json"):
            raise UserError(f"{path}: is a folder without records.json; give the folder of Argilla's `to_disk`, or a file")
        path = path / "records.json"
    if not exists(path):
        raise UserError(f"{path}: no such file")
    text = _utf8(path)
    content = _whole(text)
    for tool in (label_studio, argilla):
        if tool.is_export(content):
            yield from tool.verdicts(content, str(path))
            return
    if isinstance(content, list):
        raise UserError(
            f"{path}: is no export of Label Studio (JSON, not JSON-MIN) or Argilla (to_disk), and has no line per record"
        )
    for number, row in numbered_lines(text, path):
        yield _of_page(row, f"{path}, line {number}")


def _utf8(path: epath.Path) -> bytes:
    """The file's text in UTF-8, without the mark (BOM) that editors on Windows put before it; some save UTF-16."""
    content = read_bytes(path)
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            content = content.decode("utf-16").encode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text; give the file that the page or the tool saved") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content.strip():
        raise UserError(f"{path}: is empty; nobody has rated anything in it")
    return content


def _whole(text: bytes) -> Any:
    """The JSON that a text is as a whole; None for one with a line per record."""
    try:
        return strict_json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_page(row: Mapping[str, Any], where: str) -> Said:
    if row.keys() & {"rank", "responses", "chosen"} and "answers" not in row:
        raise UserError(f"{where}: is a record of data, not a verdict")
    texts = {name: row.get(name) for name in ("id", "prompt", "who", "when", "tool", "reason")}
    for name, value in texts.items():
        if not isinstance(value, str | None) or (not (value or "").strip() and name in ("id", "who")):
            raise UserError(f"{where}: field {name!r} must be text, found {shown(value)}")
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise UserError(f"{where}: field 'answers' must be a list of objects, found {shown(answers)}")
    rated = tuple(_answer(answer, f"{where}, answer {number}") for number, answer in enumerate(answers, 1))
    tool, reason = texts["tool"] or PAGE, texts["reason"] or ""
    return Said(where, texts["id"], texts["prompt"], rated, texts["who"].strip(), texts["when"], tool, reason)


def _answer(row: Mapping[str, Any], where: str) -> Rated:
    text, digest, same = row.get("text"), row.get("digest"), row.get("same_as_above", False)
    if not isinstance(text, str | None) or not isinstance(digest, str | None) or (text, digest) == (None, None):
        raise UserError(f"{where}: needs the digest of the answer, or its text")
    if not isinstance(same, bool):
        raise UserError(f"{where}: same_as_above must be true or false, found {shown(same)}")
    if digest is None:
        digest = text_digest(text)
    return Rated(digest, None if text is None else shown_text(text), rating_of(row.get("rating"), where), same)
