"""JSON as its standard (RFC 8259) has it, in and out: without the NaN and Infinity that Python's own module takes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.progress import say

# A float holds integers of up to 308 digits; what counts or identifies something has far fewer.
MOST_DIGITS = 300

JSONDecodeError = json.JSONDecodeError


class NotStrict(json.JSONDecodeError):
    """What Python's own module takes without a word. `msg` names the field, `item` its object's place in a list of them."""

    def __init__(self, message: str, text: str, found: Found | None) -> None:
        super().__init__(message, text, found.position if found else 0)
        self.item = found.path[0] if found and _is_in_list_of_objects(found.path) else None


class DoubledKey(NotStrict):
    """An object that has a key twice, of which Python's own module keeps the last."""


class BadNumber(NotStrict):
    """A number that is not finite, or has too many digits."""


class LoneSurrogate(NotStrict):
    """A text with half of a character (`"\\ud800"`), which no file in UTF-8 and no tokenizer takes."""


def loads(text: str | bytes, **options: Any) -> Any:
    """As `json.loads`, but strict. Raises JSONDecodeErrors: BadNumber for NaN, Infinity, 1e999 and endless integers,
    DoubledKey for an object that has a key twice, and LoneSurrogate for a text that is none."""
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
    """A key or a value that is no container: the way to it, the place of its first character, and how it is written."""

    path: tuple[str | int, ...]
    position: int
    token: str
    is_key: bool
    is_again: bool  # a key that its object has already


_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def _find(text: str, wanted: Callable[[Found], bool]) -> Found | None:
    """The first key or value of a JSON text that is wanted. (What Python's own module calls back with has no place.)"""
    way: list[str | int | None] = []  # of an object whose next token is a key, None
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
                except json.JSONDecodeError:  # the text ends otherwise than it began
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
    """The way to a field inside its object."""
    return shown(".".join(map(str, path[1:] if _is_in_list_of_objects(path) else path)))


def _record(text: str, path: tuple[str | int, ...]) -> str:
    """The id of the object, where it has one, as the beginning of a message."""
    way = (path[0], "id") if _is_in_list_of_objects(path) else ("id",)
    found = _find(text, lambda found: found.path == way and not found.is_key)
    return f"record {shown(json.loads(found.token))}: " if found and found.token.startswith('"') else ""


def dumps(value: Any, *, where: str = "", **options: Any) -> str:
    """As `json.dumps`. Raises UserError, which opens with `where`, and names the first number that is not finite."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        key = next(_not_finite(value, ""), None)
        if key is None:  # circular, say
            raise
        path, found = key
        raise UserError(f"{where}{': ' if where else ''}{path or 'the value'} is {found}, which JSON cannot say") from None


def with_nulls(value: Any) -> Any:
    """The value with null in the place of every number that is not finite: for figures of which one may be undefined."""
    if isinstance(value, dict):
        return {key: with_nulls(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_nulls(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_figures(figures: Any) -> None:
    """Print figures as JSON. One that is not finite is null there, and said."""
    for path, found in _not_finite(figures, ""):
        say(f"{path} is {found}: null in the JSON")
    print(dumps(with_nulls(figures), ensure_ascii=False))


def _not_finite(value: Any, path: str):
    """(place, number) of every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _not_finite(each, f"{path}.{key}" if path else str(key))
