"""JSON as its standard (RFC 8259) has it, in and out: without the NaN and Infinity that Python's own module takes."""

from __future__ import annotations

import json
import math
from typing import Any

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.progress import say

# A float holds integers of up to 308 digits; what counts or identifies something has far fewer.
MOST_DIGITS = 300

JSONDecodeError = json.JSONDecodeError


class DoubledKey(json.JSONDecodeError):
    """An object that has a key twice, of which Python's own module keeps the last without a word."""


class BadNumber(json.JSONDecodeError):
    """A number that is not finite, or has too many digits. `msg` names the field that it stands in."""


def loads(text: str | bytes, **options: Any) -> Any:
    """As `json.loads`, but strict. Raises JSONDecodeErrors: BadNumber for NaN, Infinity, 1e999 and endless integers, and
    DoubledKey for an object that has a key twice."""
    text = text if isinstance(text, str) else text.decode()

    def refuse(number: str) -> Any:
        raise BadNumber(_complaint(text, number), text, max(0, text.find(number)))

    def to_float(number: str) -> float:
        return value if math.isfinite(value := float(number)) else refuse(number)

    def to_int(number: str) -> int:
        return refuse(number) if len(number) > MOST_DIGITS else int(number)

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DoubledKey(f"field {shown(twice)} stands twice in one object", text, 0)
        return found

    options = {"object_pairs_hook": to_object} | options
    return json.loads(text, parse_float=to_float, parse_int=to_int, parse_constant=refuse, **options)


def _complaint(text: str, number: str) -> str:
    """What to say of the first number that is wrong: its field, and the id of the object, where it has one."""
    if len(number) > MOST_DIGITS:
        return f"holds an integer of {len(number)} digits, more than {MOST_DIGITS}"
    value = json.loads(text, parse_int=lambda digits: 0)
    path = next((path for path, _ in _not_finite(value, "")), "")
    record = f"record {shown(value['id'])}: " if isinstance(value, dict) and isinstance(value.get("id"), str) else ""
    if not path and not isinstance(value, dict):
        return f"{number} is no finite number"
    return f"{record}field {shown(path)} must be a finite number, found {number[:40]}"


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
