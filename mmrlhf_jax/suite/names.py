"""Short names of models that stand beside each other in a table or on a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def short_names(names: Sequence[str], directories: Sequence[str]) -> list[str]:
    """The ends of names that are paths, each as short as no other name has it. Equal names are told apart by their directories,
    or by numbers if these are equal, too."""
    parts = [_parts(name) for name in names]
    short = [_end(each, parts) for each in parts]
    counts = Counter(short)
    equal = [place for place, name in enumerate(short) if counts[name] > 1]
    folders = [_parts(directories[place]) for place in equal]
    ends = [_end(each, folders) for each in folders]
    if len(set(ends)) < len(ends):
        ends = [str(number) for number in range(1, len(ends) + 1)]
    for place, end in zip(equal, ends, strict=True):
        short[place] = f"{short[place]} ({end})"
    return short


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.rstrip("/").split("/"))


def _end(path: tuple[str, ...], paths: Sequence[tuple[str, ...]]) -> str:
    """The fewest last parts of a path with which no other one of the paths ends; all of them if there are no such."""
    others = [each for each in paths if each != path]
    counts = (count for count in range(1, len(path)) if not any(each[-count:] == path[-count:] for each in others))
    return "/".join(path[-next(counts, len(path)) :])
