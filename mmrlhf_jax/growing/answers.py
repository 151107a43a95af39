"""What is wrong with a sampled answer before anybody judges it: empty, cut off, repeating itself, or equal to another one."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from mmrlhf_jax.records import is_blank

# A text repeats itself whose end is one unit of up to so many characters, at least so many times, and so many characters long
# together; a unit without a letter may be a part of a number or a line.
LONGEST_UNIT, REPEATS, LEAST, LEAST_WITHOUT_LETTERS = 300, 4, 12, 20
_SPACE = re.compile(r"\s+")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One sampled text. `copies` counts equal ones; `flags` are reasons not to put it first."""

    text: str
    finish_reason: str
    index: int  # of the sample that this text is from
    copies: int = 1
    flags: tuple[str, ...] = ()


def distinct(texts: Sequence[str], reasons: Sequence[str]) -> list[Answer]:
    """The different answers among samples, in the order of their first ones. Spaces do not make a difference. Of equal ones
    the first without flags stands for all."""
    found: dict[str, Answer] = {}
    for index, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
        key = same_words(text)
        answer, known = Answer(text, reason, index, flags=flags_of(text, reason)), found.get(key)
        if known is not None:
            best = answer if known.flags and not answer.flags else known
            answer = dataclasses.replace(best, copies=known.copies + 1)
        found[key] = answer
    return list(found.values())


def same_words(text: str) -> str:
    """What equal answers have in common."""
    return _SPACE.sub(" ", text).strip()


def flags_of(text: str, reason: str) -> tuple[str, ...]:
    found = []
    if is_blank(text):
        found.append("empty")
    if reason == "length":
        found.append("truncated")
    if repeats(text):
        found.append("repeating")
    return tuple(found)


def repeats(text: str) -> bool:
    """Whether the text ends in the same characters again and again."""
    end = f" {_SPACE.sub(' ', text).strip()}"  # so that the first unit has a space before it, as the others
    for size in range(1, min(LONGEST_UNIT, len(end) // REPEATS) + 1):
        unit = end[-size:]
        least = LEAST if any(map(str.isalpha, unit)) else LEAST_WITHOUT_LETTERS
        if unit.strip() and end.endswith(unit * max(REPEATS, math.ceil(least / size))):
            return True
    return False
