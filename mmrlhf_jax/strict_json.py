"""Strict JSON (RFC 8259) for reading and writing: without NaN and Infinity, which Python's own module accepts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mmrlhf_jax import printing
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.progress import say

# A float can hold integers of up to 308 digits; counts and ids have far fewer.
MOST_DIGITS = 300

JSONDecodeError = json.JSONDecodeError


class NotStrict(json.JSONDecodeError):
    """An error that Python's own module ignores. `msg` names the field, `item` is the index of its object in a list, or
    None."""

    def __init__(self, message: str, text: str, found: Found | None) -> None:
        super().__init__(message, text, found.position if found else 0)
        self.item = found.path[0] if found and _is_in_list_of_objects(found.path) else None


class DoubledKey(NotStrict):
    """An object has a key twice; Python's own module would keep the last one."""


class BadNumber(NotStrict):
    """A number is not finite, or has too many digits."""


class LoneSurrogate(NotStrict):
    """A text has a lone surrogate (`"\\ud800"`), which UTF-8 cannot encode and tokenizers refuse."""


def loads(text: str | bytes, **options: Any) -> Any:
    """Like `json.loads`, but strict. Raises JSONDecodeErrors: BadNumber for NaN, Infinity, 1e999 and integers with too many
    digits, DoubledKey for an object with a repeated key, and LoneSurrogate."""
    text = text if isinstance(text, str) else text.decode()

    def refuse(number: str) -> Any:
        raise _bad_number(text, number)

    def to_float(number: str) -> float:
        return value if math.isfinite(value := float(number)) else refuse(number)

    def to_int(number: str) -> int:
        return refuse(number) if len(number) > MOST_DIGITS else int(number)

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise _doubled_key(text, [name for name, _ in pairs])
        return found

    options = {"object_pairs_hook": to_object} | options
    value = json.loads(text, parse_float=to_float, parse_int=to_int, parse_constant=refuse, **options)
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _lone_surrogate(text) from None
    return value


# Where it stands -----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A key, or a value that is no container: its path, the offset of its first character, and its token in the text."""

    path: tuple[str | int, ...]
    position: int
    token: str
    is_key: bool
    is_again: bool  # whether it is a key that its object has already


# A text that nothing closes ends with the whole; looked for again at each of its quotation marks, it would take for ever.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+(?:"|\Z)|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def _find(text: str, wanted: Callable[[Found], bool]) -> Found | None:
    """The first key or value of a JSON text for which `wanted` is true. (Python's own module passes no positions to its
    hooks.)"""
    way: list[str | int | None] = []  # the current path; None in an object whose next token is a key
    keys: list[set[str]] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "{[":
            way.append(None if token == "{" else 0)
            keys.append(set())
        elif token in "}]":
            del way[-1:], keys[-1:]
        elif token == ",":
            if way:
                way[-1] = way[-1] + 1 if isinstance(way[-1], int) else None
        elif token != ":":
            is_key = bool(way) and way[-1] is None
            if is_key:
                try:
                    way[-1] = key = json.loads(token)
                except json.JSONDecodeError:  # the text is not valid JSON
                    return None
            found = Found(tuple(way), match.start(), token, is_key, is_key and key in keys[-1])
            if wanted(found):
                return found
            if is_key:
                keys[-1].add(key)
    return None


def _is_bad_number(found: Found) -> bool:
    if found.token.startswith('"') or found.token in ("true", "false", "null"):
        return False
    return len(found.token) > MOST_DIGITS or not math.isfinite(float(found.token))


def _bad_number(text: str, number: str) -> BadNumber:
    found = _find(text, _is_bad_number)
    if found is None or not found.path:
        return BadNumber(f"{_digits(number) or number[:40]} is no finite number", text, found)
    what = f"must be a finite number, found {_digits(found.token) or found.token[:40]}"
    return BadNumber(f"{_record(text, found.path)}field {_field(found.path)} {what}", text, found)


def _digits(number: str) -> str:
    return f"an integer of {len(number)} digits, more than {MOST_DIGITS}" if len(number) > MOST_DIGITS else ""


def _doubled_key(text: str, names: list[str]) -> DoubledKey:
    found = _find(text, lambda found: found.is_again)
    twice = found.path[-1] if found else next(name for name in names if names.count(name) > 1)
    return DoubledKey(f"field {shown(twice)} stands twice in one object", text, found)


def _lone_surrogate(text: str) -> LoneSurrogate:
    found = _find(text, lambda found: found.token.startswith('"') and not _is_text(json.loads(found.token)))
    field = f"{_record(text, found.path)}field {_field(found.path)}" if found and found.path else "it"
    return LoneSurrogate(f"not valid UTF-8: {field} holds half of a character (a lone surrogate)", text, found)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_in_list_of_objects(path: tuple[str | int, ...]) -> bool:
    return len(path) > 1 and isinstance(path[0], int)


def _field(path: tuple[str | int, ...]) -> str:
    """The path of a field inside its record, for messages."""
    return shown(".".join(map(str, path[1:] if _is_in_list_of_objects(path) else path)))


def _record(text: str, path: tuple[str | int, ...]) -> str:
    """The beginning of a message with the record's id; "" if it has none."""
    way = (path[0], "id") if _is_in_list_of_objects(path) else ("id",)
    found = _find(text, lambda found: found.path == way and not found.is_key)
    return f"record {shown(json.loads(found.token))}: " if found and found.token.startswith('"') else ""


def dumps(value: Any, *, where: str = "", **options: Any) -> str:
    """Like `json.dumps`. Raises UserError, which begins with `where` and names the first number that is not finite."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        key = next(_not_finite(value, ""), None)
        if key is None:  # another error, such as a circular reference
            raise
        path, found = key
        raise UserError(f"{where}{': ' if where else ''}{path or 'the value'} is {found}, which JSON cannot say") from None


def with_nulls(value: Any) -> Any:
    """The value with every number that is not finite replaced by None, for figures that may be undefined."""
    if isinstance(value, dict):
        return {key: with_nulls(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_nulls(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_figures(figures: Any) -> None:
    """Print figures as JSON. Figures that are not finite become null, with a message."""
    for path, found in _not_finite(figures, ""):
        say(f"{path} is {found}: null in the JSON")
    print(dumps(with_nulls(figures), ensure_ascii=not printing.is_unicode()))


def _not_finite(value: Any, path: str):
    """Yield (path, number) for every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _not_finite(each, f"{path}.{key}" if path else str(key))
