"""Names of files that are numbered, in the order of their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

_NUMBER = re.compile("[0-9]+")
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted as text where their numbers have the same digits throughout, as zero-padded ones; else by the numbers.

    So 2.png comes before 10.png, frame_2 before frame_10, and 0.25.png before 0.5.png, where all names have a decimal number in
    that place. Names that differ in zeros alone (1.png and 01.png) are sorted as text.
    """
    names = sorted(names)
    if len({tuple(map(len, _NUMBER.findall(name))) for name in names}) <= 1:
        return names
    number = _DECIMAL if _have_decimals([_SUFFIX.sub("", name) for name in names]) else _NUMBER
    return sorted(names, key=lambda name: _natural_key(name, number))


def _have_decimals(stems: list[str]) -> bool:
    """Whether the numbers in names are decimal ones, such as seconds: not parts of versions or dates (1.2.3), nor counters.

    All names have the same texts around as many numbers. 1.9 and 1.10 are counters: who writes decimals of any length leaves
    out the last zero.
    """
    if len({_DECIMAL.sub("#", stem) for stem in stems}) > 1 or any(re.search(r"[0-9]\.[0-9]+\.[0-9]", stem) for stem in stems):
        return False
    parts = {part for stem in stems for part in re.findall(r"[0-9]\.([0-9]+)", stem)}
    are_of_one_length = len(set(map(len, parts))) == 1
    return bool(parts) and (are_of_one_length or not any(len(part) > 1 and part.endswith("0") for part in parts))


def _natural_key(name: str, number: re.Pattern[str]) -> list[tuple[Decimal, str]]:
    """A name as alternating texts and numbers; texts come first, so that like is compared with like."""
    texts, numbers = number.split(name), number.findall(name)
    pairs = zip(texts, [*numbers, "0"], strict=True)
    return [part for text, number in pairs for part in ((Decimal(0), text), (Decimal(number), ""))]
