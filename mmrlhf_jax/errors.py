"""The exception whose message is meant for the user at the command line, and how its messages show values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class UserError(Exception):
    """Something that the user provided (a file, a record, a setting) is wrong.

    The message is one line: what is wrong, where (file, record id, key), and what to do. The command line prints it as
    `error: ...` and exits with `status`, without a traceback.
    """

    status = 2


def shown(value: Any, limit: int = 100) -> str:
    """A value as one short line for an error message."""
    if isinstance(value, str | bytes) and len(value) > limit:  # avoids the repr of a long text
        value = value[: limit + 1]
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextlib.contextmanager
def of_option(option: str) -> Iterator[None]:
    """A context whose errors of the user name the option of the command line that is wrong: `--judge ADDRESS: not an address`.
    The message begins with the option's value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{option} {error}") from None
