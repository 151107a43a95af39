"""Multimodal RewardBench 2 (MMRB2), in both forms in which it is published: pairs about texts with pictures between.

`facebookresearch/MMRB2` builds `reasoning.json`: `{"pairs": [{id, prompt_source, prompt_content, response_a, response_b,
chosen}]}`, where contents list ["text", ...] and ["image", path], and `chosen` is A or B. The hub's parquet
(`rl-research/multimodal-rewardbench-2`) has `prompt_text` with <image_1>, ..., `prompt_images`, and the same of both answers.

Pictures inside an answer cannot be shown to a model that judges texts. Such answers are read with `[picture]` in their places
and with the number of pictures as `inserted_pictures`, and a note counts them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.sources.fields import open_record, pop_optional_text
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.places import IMAGE_TAG, WrongMedia
from mmrlhf_jax.records import RankedRecord, Response, under_free_names

INSERTED = "inserted_pictures"
_PLACEHOLDER = re.compile(r"<image_\d+>")
_SIDES = ("a", "b")
# A text, or the path of a picture.
Part = tuple[str, str]


def _parse(row: Row) -> RankedRecord:
    data = dict(row.data)
    if "id" not in data:
        data["id"] = data.pop("pair_id", None)
    data, record_id, where = open_record(Row(row.where, data))
    chosen = data.pop("chosen", None)
    if not isinstance(chosen, str) or chosen.upper() not in ("A", "B"):
        raise UserError(f"{where}: field 'chosen' must be A or B, found {shown(chosen)}")
    prompt, places, images = _prompt(_prompt_parts(data, where))
    responses = [_response(data, side, where, 1 if chosen.upper() == side.upper() else 2) for side in _SIDES]
    for name in ("prompt_metadata", "human_annotations"):
        if isinstance(data.get(name), str):
            data[name] = _unpacked(data[name])
    return RankedRecord(
        id=record_id,
        prompt=prompt,
        responses=tuple(sorted(responses, key=lambda response: response.rank)),
        images=images,
        source=pop_optional_text(data, "prompt_source", where),
        extra={"benchmark": "MMRB2"} | under_free_names(data, {"benchmark"}),
        media_places=places,
    )


def _prompt(parts: Sequence[Part]) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """(text with tags, their offsets, paths). Pictures before all text need no tags."""
    images = tuple(value for kind, value in parts if kind == "image")
    texts = [value for kind, value in parts if kind == "text"]
    if _leading(parts):
        return "\n".join(texts), (), images
    prompt, places = "", []
    for kind, value in parts:
        prompt += "\n" if prompt else ""
        if kind == "image":
            places.append(len(prompt))
        prompt += IMAGE_TAG if kind == "image" else value
    return prompt, tuple(places), images


def _leading(parts: Sequence[Part]) -> bool:
    """Whether no picture stands behind a text."""
    kinds = [kind for kind, _ in parts]
    return kinds == sorted(kinds)  # "image" < "text"


def _response(data: dict[str, Any], side: str, where: str, rank: int) -> Response:
    """The answer of `response_a` or `response_b`, or of the columns that begin with these names."""
    name = f"response_{side}"
    if f"{name}_text" in data or f"{name}_images" in data:
        rest, parts, model = {}, _split(data, name, where), data.pop(f"{name}_model", None)
    else:
        rest = data.pop(name, None)
        if not isinstance(rest, dict):
            raise UserError(f"{where}: field {name!r} must be an object with 'response_content', found {shown(rest)}")
        rest = dict(rest)
        parts = _typed(rest.pop("response_content", None), f"{where}: field '{name}.response_content'")
        model = rest.pop("model_name" if "model_name" in rest else "model", None)
    if not isinstance(model, str | None):
        raise UserError(f"{where}: the model of {name!r} must be a string, found {shown(model)}")
    text = "\n".join("[picture]" if kind == "image" else value for kind, value in parts)
    pictures = sum(kind == "image" for kind, _ in parts)
    return Response(text=text, rank=rank, model=model or None, extra=rest | ({INSERTED: pictures} if pictures else {}))


def _prompt_parts(data: dict[str, Any], where: str) -> list[Part]:
    if "prompt_text" in data or "prompt_images" in data:
        return _split(data, "prompt", where)
    return _typed(data.pop("prompt_content", None), f"{where}: field 'prompt_content'")


def _split(data: dict[str, Any], name: str, where: str) -> list[Part]:
    """The parts of the column `NAME_text`, with the pictures `NAME_images` at their places."""
    text, images = data.pop(f"{name}_text", None), data.pop(f"{name}_images", None)
    text, images = "" if text is None else text, [] if images is None else images
    if not isinstance(text, str) or not isinstance(images, list) or not all(isinstance(path, str) for path in images):
        raise UserError(f"{where}: fields '{name}_text' and '{name}_images' must be a text and a list of pictures")
    places = _PLACEHOLDER.findall(text)
    if places and len(places) != len(images):
        raise WrongMedia(f"{where}: field '{name}_text' has {len(places)} places for {len(images)} pictures")
    parts, left = [], iter(images)
    for number, piece in enumerate(_PLACEHOLDER.split(text)):
        parts += [("image", next(left))] if number else []
        parts += [("text", piece.strip())] if piece.strip() else []
    return parts + [
        ("image", path) for path in left
    ]  # at the end, as in the benchmark's own code, where the text has no places


def _typed(parts: Any, where: str) -> list[Part]:
    """The parts of a content that lists ["text", ...] and ["image", path]."""
    if not isinstance(parts, list) or not parts:
        raise UserError(f'{where} must list ["text", ...] and ["image", path], found {shown(parts)}')
    for part in parts:
        is_part = isinstance(part, list) and len(part) == 2 and all(isinstance(one, str) for one in part)
        if not is_part or part[0] not in ("text", "image") or (part[0] == "image" and not part[1]):
            raise UserError(f'{where} must list ["text", ...] and ["image", path], found {shown(part)}')
    return [(kind, value) for kind, value in parts]


def _unpacked(text: str) -> Any:
    """The value of a field that parquet has as JSON text; the text itself if it is none."""
    try:
        return strict_json.loads(text)
    except (ValueError, RecursionError):
        return text


def _matches(row: dict[str, Any]) -> bool:
    content = {"prompt_content", "response_a", "response_b", "chosen"} <= row.keys()
    return content or {"prompt_text", "response_a_text", "response_b_text", "chosen"} <= row.keys()


def _remark(records: Sequence[RankedRecord]) -> str | None:
    with_pictures = sum(any(INSERTED in response.extra for response in record.responses) for record in records)
    if not with_pictures:
        return None
    return f"{with_pictures} of {len(records)} pairs have pictures inside an answer, which models here do not see"


FORMAT = Format(
    "MMRB2",
    "id, prompt_content[], response_a{response_content[]}, response_b{response_content[]}, chosen",
    _matches,
    _parse,
    remark=_remark,
)
