"""Names of files that are numbered, in the order of their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile("[0-9]+")


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted as text where their numbers have the same digits throughout, as zero-padded ones; else by the numbers.

    So 2.png comes before 10.png, frame_2 before frame_10. Names that differ in zeros alone (1.png and 01.png) are sorted as
    text.
    """
    names = sorted(names)
    if len({tuple(map(len, _NUMBER.findall(name))) for name in names}) <= 1:
        return names
    return sorted(names, key=_natural_key)


def _natural_key(name: str) -> list[tuple[int, str]]:
    """A name as alternating texts and numbers; texts come first, so that like is compared with like."""
    texts, numbers = _NUMBER.split(name), _NUMBER.findall(name)
    return [part for text, number in zip(texts, [*numbers, "0"], strict=True) for part in ((0, text), (int(number), ""))]
