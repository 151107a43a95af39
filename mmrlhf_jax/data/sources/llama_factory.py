"""LLaMA-Factory preference rows in both styles, with `images` or `videos` beside them.

ShareGPT style: `conversations` (or `messages`) up to the question, and `chosen` and `rejected` as one message each, with the
keys `from`/`value` or `role`/`content`. Alpaca style: `instruction`, an optional `input`, which follows on a new line, and
`chosen` and `rejected` as texts. Tags such as `<image>` in the question are the places of the media. As in all formats, only
one turn is allowed.
"""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.data.sources.chat import message_text, read_prompt
from mmrlhf_jax.data.sources.fields import check_answers, pop_media, pop_optional_text, pop_text
from mmrlhf_jax.data.sources.folding import PairRow, fold, pair_row
from mmrlhf_jax.data.sources.rows import Format, Row
from mmrlhf_jax.errors import UserError, shown

_ROLES = {"human": "user", "gpt": "assistant"}


def _parse(row: Row) -> PairRow:
    data, where = dict(row.data), row.where
    media = pop_media(data, where)
    for unread in ("history", "system", "tools"):
        if data.pop(unread, None):
            raise UserError(f"{where}: field {unread!r} must be empty; a record's prompt is one user text")
    field = next((name for name in ("conversations", "messages", "instruction") if name in data), None)
    if field is None:
        raise UserError(f"{where}: field 'conversations', 'messages' or 'instruction' is missing; one of them has the prompt")
    if field == "instruction":
        question: Any = pop_text(data, field, where)
        if more := pop_optional_text(data, "input", where):
            question = f"{question}\n{more}" if question else more
    else:
        question = _messages(data.pop(field), where)
        if isinstance(question, str):
            raise UserError(f"{where}: field {field!r} must be a list of messages, found {shown(question)}")
    prompt, media = read_prompt(question, field, media, where)
    chosen, rejected = (_answer(data, name, where) for name in ("chosen", "rejected"))
    check_answers(prompt, media, (chosen, rejected), where)
    return pair_row(data, where, media, prompt, chosen, rejected)


def _answer(data: dict[str, Any], field: str, where: str) -> str:
    value = data.pop(field, None)
    return message_text(value if isinstance(value, str) else _messages(value, where), "assistant", field, where)


def _messages(value: Any, where: str) -> Any:
    """Messages with the keys `role` and `content`; any other value is returned unchanged, and `chat` then refuses it."""
    messages = [value] if isinstance(value, dict) else value
    return [_message(message, where) for message in messages] if isinstance(messages, list) else messages


def _message(message: Any, where: str) -> Any:
    if not isinstance(message, dict) or "from" not in message:
        return message
    if "role" in message or "content" in message:
        raise UserError(f"{where}: a message has both 'from' and 'role' or 'content'; keep one of them")
    rest = {name: value for name, value in message.items() if name not in ("from", "value")}
    role = message["from"]
    return rest | {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": message.get("value")}


def _matches(row: dict[str, Any]) -> bool:
    if not {"chosen", "rejected"} <= row.keys() or "prompt" in row:
        return False
    return "conversations" in row or "instruction" in row or ("messages" in row and not isinstance(row["chosen"], list))


FORMAT = Format(
    "LLaMA-Factory preference rows",
    "conversations | messages | instruction, input, chosen, rejected, images | videos",
    _matches,
    _parse,
    fold,
    row="pair",
)
