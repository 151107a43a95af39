"""Checks that a row has only one prompt: other fields with a prompt's name must have the same text.

Published rows often keep the prompt in several columns (`prompt` and `messages`, `question` and `conversations`). If these
differ, only the user can know which of them the answers belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.data.sources.rows import Row
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.places import TAG

# Compared in lower case. (`Text` is also a prompt's name, but `text` often holds prompt and answer together.)
_NAMES = frozenset({"prompt", "question", "query", "instruction", "input", "messages", "conversations"})
_ASKING = ("user", "human")


def check_one_prompt(parsed: Any, row: Row) -> None:
    """UserError for a field that has a prompt's name and another text than the prompt that was read.

    `parsed` is a record or a row of pairs: anything with `id`, `prompt`, and the unread fields `extra`.
    """
    left = {name: value for name, value in parsed.extra.items() if _is_name(name)}
    # A record stores an unread field with the name of one of its own fields as `original_NAME`.
    left |= {
        name: row.data[name] for name in row.data if f"original_{name}" in parsed.extra and f"original_{name}" not in row.data
    }
    for name, value in left.items():
        if _is_name(name) and (texts := _texts(value)) and " ".join(texts) != (read := _plain(parsed.prompt)):
            where = row.where if parsed.id is None else f"{row.where} (record {shown(parsed.id)})"
            raise UserError(
                f"{where}: has two prompts, {_read_from(row.data, left)} ({shown(read, 60)}) and field {name!r}"
                f" ({shown(' '.join(texts), 60)}); remove one of them, or rename it if it is no prompt"
            )


def _is_name(name: str) -> bool:
    return name.casefold() in _NAMES or name == "Text"


def _read_from(data: Mapping[str, Any], left: Mapping[str, Any]) -> str:
    """The field that the prompt was read from, in words."""
    names = [name for name in data if _is_name(name) and name not in left]
    name = next(iter(names), next((name for name in ("text", "chosen") if name in data), None))
    return "the one that is read" if name is None else f"field {name!r}"


def _texts(value: Any) -> list[str]:
    """The texts of a prompt, or of the user's messages; empty for any other value."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, str):
        found = [value]
    elif isinstance(value, list):
        found = [text for item in value for text in _asked(item)]
    else:
        found = []
    return [text for text in map(_plain, found) if text]


def _asked(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    if not isinstance(item, dict) or item.get("role", item.get("from", "user")) not in _ASKING:
        return []
    content = item.get("content", item.get("value", item.get("text")))
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def _plain(text: str) -> str:
    """A text without media tags, and with single spaces between words."""
    return " ".join(TAG.sub(" ", text).split())
