"""Sorts the names of numbered files by their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

_NUMBER = re.compile("[0-9]+")
_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names as text if corresponding numbers all have the same number of digits (zero-padded), else by their numbers.

    So 2.png comes before 10.png, frame_2 before frame_10, and 0.25.png before 0.5.png if all names have a decimal number in
    that place. Names that differ only in leading zeros (1.png and 01.png) are sorted as text.
    """
    names = sorted(names)
    if len({tuple(map(len, _NUMBER.findall(name))) for name in names}) <= 1:
        return names
    number = _DECIMAL if _have_decimals([_SUFFIX.sub("", name) for name in names]) else _NUMBER
    return sorted(names, key=lambda name: _natural_key(name, number))


def _have_decimals(stems: list[str]) -> bool:
    """Whether numbers with a point are decimals (such as seconds), not parts of versions or dates (1.2.3), nor two counters.

    All names must have the same text around their numbers. Fractions of different lengths of which one ends in 0 (1.9 and 1.10)
    are counters, because variable-length decimals have no trailing zeros.
    """
    if len({_DECIMAL.sub("#", stem) for stem in stems}) > 1 or any(re.search(r"[0-9]\.[0-9]+\.[0-9]", stem) for stem in stems):
        return False
    parts = {part for stem in stems for part in re.findall(r"[0-9]\.([0-9]+)", stem)}
    are_of_one_length = len(set(map(len, parts))) == 1
    return bool(parts) and (are_of_one_length or not any(len(part) > 1 and part.endswith("0") for part in parts))


def _natural_key(name: str, number: re.Pattern[str]) -> list[tuple[Decimal, str]]:
    """A sort key of alternating texts and numbers, starting with a text, so that equal kinds are compared."""
    texts, numbers = number.split(name), number.findall(name)
    pairs = zip(texts, [*numbers, "0"], strict=True)
    return [part for text, number in pairs for part in ((Decimal(0), text), (Decimal(number), ""))]
