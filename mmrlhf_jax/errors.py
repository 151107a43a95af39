"""The one exception that a person at the command line is meant to read, and values as its messages show them."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Something the user gave (a file, a record, a key) is wrong.

    The message is one line: what is wrong, where (file, record id, key), and what to do. The command line prints it as
    `error: ...` and exits with `status`, without a traceback.
    """

    status = 2


def shown(value: Any, limit: int = 100) -> str:
    """A value as one short line for an error message."""
    if isinstance(value, str | bytes) and len(value) > limit:  # no need to write out a megabyte
        value = value[: limit + 1]
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= limit else text[: limit - 3] + "..."
