"""ms-swift rows: a preferred answer and a `rejected_response`.

Three sets of keys are in use: `messages` that end with the preferred answer (ms-swift 3), `query` and `response` (ms-swift 2),
and `question` and `response`, which MM-RLHF's `convert_to_swift.py` writes. Tags such as `<image>` in the prompt are the places
of the media listed beside it. A `rejected_response` may be a list of answers; the preferred answer is preferred to each of
them. As in all formats, only one turn is allowed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mmrlhf_jax.data.sources.chat import message_text, read_prompt
from mmrlhf_jax.data.sources.fields import check_answers, pop_media, pop_text
from mmrlhf_jax.data.sources.folding import PairRow, fold, pair_row
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown


def _parse(row: Row) -> PairRow:
    data, where = dict(row.data), row.where
    media = pop_media(data, where)
    for unread in ("history", "system", "tools", "objects"):
        if data.pop(unread, None):
            raise UserError(f"{where}: field {unread!r} must be empty; a record's prompt is one user text")
    question, chosen = _preferred(data, where)
    prompt, media = read_prompt(question, "messages", media, where)
    rejected, *more = _rejected(data, question, where)
    if not isinstance(question, list) or isinstance(question[0].get("content"), str):  # typed parts need no tags
        check_answers(prompt, media, (chosen, rejected, *more), where)
    return dataclasses.replace(pair_row(data, where, media, prompt, chosen, rejected), also_rejected=tuple(more))


def _preferred(data: dict[str, Any], where: str) -> tuple[Any, str]:
    """(the prompt as text or messages, the preferred answer)."""
    messages = data.pop("messages", None)
    if messages is None:
        prompt = next((name for name in ("query", "question", "prompt") if name in data), "query")
        return pop_text(data, prompt, where), pop_text(data, "response", where)
    if not isinstance(messages, list) or len(messages) != 2:
        raise UserError(f"{where}: field 'messages' must be one user and one assistant message, found {shown(messages)}")
    if "response" in data:
        raise UserError(f"{where}: has both 'messages' and 'response'; keep one of them")
    return messages[:1], message_text(messages[1:], "assistant", "messages", where)


def _rejected(data: dict[str, Any], question: Any, where: str) -> list[str]:
    """The rejected answers, one or more."""
    messages = data.pop("rejected_messages", None)
    if messages is None and isinstance(data.get("rejected_response"), list):
        return _several(data.pop("rejected_response"), where)
    if messages is None:
        return [pop_text(data, "rejected_response", where)]
    if data.pop("rejected_response", None) is not None:
        raise UserError(f"{where}: has both 'rejected_messages' and 'rejected_response'; keep one of them")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: field 'rejected_messages' must be a list of messages, found {shown(messages)}")
    # The messages are the answer alone, or the whole conversation, which must then begin with the same prompt.
    if messages[:-1] and messages[:-1] != (question if isinstance(question, list) else [{"role": "user", "content": question}]):
        raise UserError(
            f"{where}: field 'rejected_messages' begins with {shown(messages[:-1])}, another prompt than the preferred side;"
            " both sides must answer the same prompt"
        )
    return [message_text(messages[-1:], "assistant", "rejected_messages", where)]


def _several(answers: list[Any], where: str) -> list[str]:
    """The answers in a list `rejected_response`: several texts, or a single message."""
    if answers and all(isinstance(answer, str) for answer in answers):
        return answers
    if not answers or not all(isinstance(answer, dict) for answer in answers):
        raise UserError(f"{where}: field 'rejected_response' must be a string, or a list of them, found {shown(answers)}")
    return [message_text(answers, "assistant", "rejected_response", where)]


FORMAT = Format(
    "ms-swift rows",
    "messages | query | question, response, rejected_response | rejected_messages, images, videos",
    lambda row: "rejected_response" in row or ("messages" in row and "rejected_messages" in row),
    _parse,
    fold,
    row="pair",
)
