"""What is wrong with a sampled answer before anybody judges it: empty, cut off, repeating itself, or equal to another one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

# A text whose end is one unit of up to so many characters, at least so many times.
LONGEST_UNIT, REPEATS = 60, 4
_SPACE = re.compile(r"\s+")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One sampled text. `copies` counts equal ones; `flags` are reasons not to put it first."""

    text: str
    finish_reason: str
    index: int  # of the first sample with this text
    copies: int = 1
    flags: tuple[str, ...] = ()


def distinct(texts: Sequence[str], reasons: Sequence[str]) -> list[Answer]:
    """The different answers among samples, in the order of their first ones. Spaces do not make a difference."""
    found: dict[str, Answer] = {}
    for index, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
        key = same_words(text)
        if key in found:
            found[key] = dataclasses.replace(found[key], copies=found[key].copies + 1)
        else:
            found[key] = Answer(text, reason, index, flags=flags_of(text, reason))
    return list(found.values())


def same_words(text: str) -> str:
    """What equal answers have in common."""
    return _SPACE.sub(" ", text).strip()


def flags_of(text: str, reason: str) -> tuple[str, ...]:
    found = []
    if not text.strip():
        found.append("empty")
    if reason == "length":
        found.append("truncated")
    if repeats(text):
        found.append("repeating")
    return tuple(found)


def repeats(text: str) -> bool:
    """Whether the text ends in the same few characters again and again."""
    end = f" {_SPACE.sub(' ', text).strip()}"  # so that the first unit has a space before it, as the others
    for size in range(1, min(LONGEST_UNIT, len(end) // REPEATS) + 1):
        unit = end[-size:]
        if unit.strip() and end.endswith(unit * max(REPEATS, 12 // size)):
            return True
    return False
