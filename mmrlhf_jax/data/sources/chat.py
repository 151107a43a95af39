"""Chat messages inside rows: `{"role", "content"}` with content as text or as a list of typed parts."""

from __future__ import annotations

from typing import Any

from mmrlhf_jax.data.sources.rows import shown
from mmrlhf_jax.errors import UserError

Messages = list[dict[str, Any]]


def message_text(value: Any, role: str, field: str, where: str) -> str:
    """The text of a plain string or of the one message of `role` that a list must hold."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UserError(f"{where}: field {field!r} must be a string or a list of messages, found {shown(value)}")
    roles = [message.get("role") for message in value]
    if roles != [role]:
        raise UserError(f"{where}: field {field!r} must be one {role} message (one turn), found roles {shown(roles)}")
    content = value[0].get("content")
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in message_parts(value, where) if isinstance(part.get("text"), str))
    if not isinstance(content, str):
        raise UserError(f"{where}: a message of {field!r} must have text content, found {shown(content)}")
    return content


def message_parts(messages: Messages, where: str) -> list[dict[str, Any]]:
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{where}: message content must be a string or a list of objects, found {shown(parts)}")
    return parts
