"""ms-swift rows: the answer that was preferred, and `rejected_response`.

Three generations of keys are in use: `messages` that end with the preferred answer (ms-swift 3), `query` and `response`
(ms-swift 2), and `question` and `response`, which MM-RLHF's own `convert_to_swift.py` writes. Tags such as `<image>` in the
prompt stand for the media listed beside it. One turn only, as everywhere here.
"""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.data.sources.chat import message_text
from mmrlhf_jax.data.sources.fields import Media, pop_media, pop_text
from mmrlhf_jax.data.sources.folding import PairRow, fold, pair_row
from mmrlhf_jax.data.sources.rows import Format, Row, shown
from mmrlhf_jax.errors import UserError

_VIDEO_PLACEHOLDER = "<video>"


def _parse(row: Row) -> PairRow:
    data, where = dict(row.data), row.where
    media = _media(data, where)
    for earlier in ("history", "system"):
        if data.pop(earlier, None):
            raise UserError(f"{where}: field {earlier!r} must be empty; a record's prompt is one user text")
    prompt, chosen = _preferred(data, where)
    if media[1] is not None and _VIDEO_PLACEHOLDER in prompt:  # without a video the same characters are text and stay
        prompt = prompt.replace(_VIDEO_PLACEHOLDER, "").strip()
    return pair_row(data, where, media, prompt, chosen, _rejected(data, where))


def _media(data: dict[str, Any], where: str) -> Media:
    videos = data.pop("videos", None) or []
    if not isinstance(videos, list) or len(videos) > 1:
        raise UserError(f"{where}: field 'videos' must list one path, found {shown(videos)}")
    if videos:
        if (other := data.get("video") or videos[0]) != videos[0]:
            raise UserError(f"{where}: fields 'video' and 'videos' name different videos, {shown(other)} and {shown(videos)}")
        data["video"] = videos[0]
    return pop_media(data, where)


def _preferred(data: dict[str, Any], where: str) -> tuple[str, str]:
    """(prompt, preferred answer)."""
    messages = data.pop("messages", None)
    if messages is None:
        prompt = next((name for name in ("query", "question", "prompt") if name in data), "query")
        return pop_text(data, prompt, where), pop_text(data, "response", where)
    if not isinstance(messages, list) or len(messages) != 2:
        raise UserError(f"{where}: field 'messages' must be one user and one assistant message, found {shown(messages)}")
    return message_text(messages[:1], "user", "messages", where), message_text(messages[1:], "assistant", "messages", where)


def _rejected(data: dict[str, Any], where: str) -> str:
    messages = data.pop("rejected_messages", None)
    if messages is None:
        return pop_text(data, "rejected_response", where)
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: field 'rejected_messages' must be a list of messages, found {shown(messages)}")
    return message_text(messages[-1:], "assistant", "rejected_messages", where)


FORMAT = Format(
    "ms-swift rows",
    "messages | query | question, response, rejected_response, images, videos",
    lambda row: "rejected_response" in row or ("messages" in row and "rejected_messages" in row),
    _parse,
    fold,
    row="pair",
)
