"""Goodput: the share of a run's time that went into steps, and the seconds of everything else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

Item = TypeVar("Item")
NAME = "goodput"
PARTS = ("start", "compile", "data_wait", "checkpoint", "evaluation", "repeated")


class Goodput:
    """Seconds of a run by part (`PARTS`), over all its attempts; time in none of the parts was productive.

    `repeated` is the time of steps that an earlier attempt made after its last checkpoint, and that are made again.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._attempt, self._before = 1, 0.0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def follows(self, found: Mapping[str, float], kept: Mapping[str, float]) -> None:
        """Add the time of earlier attempts. `found` are the last figures that they logged, `kept` the last ones up to the
        restored step; either is empty if there are none.
        """
        names = ["attempt", "seconds", *(f"{part}_seconds" for part in PARTS)]
        logged = {name: found.get(f"{NAME}/{name}") for name in names}
        if not all(isinstance(each, int | float) for each in logged.values()):  # missing, or from a version with other parts
            return
        self._attempt, self._before = int(logged["attempt"]) + 1, logged["seconds"]
        for part in PARTS:
            self._seconds[part] += logged[f"{part}_seconds"]
        self._seconds["repeated"] += productive_seconds(found) - productive_seconds(kept)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A context whose time counts as the part `name`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - started

    def started(self) -> None:
        """Count this attempt's time so far as "start"; called right before the first step."""
        self._seconds["start"] += time.monotonic() - self._began

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate over `items`, and count the time spent waiting for the next one as "data_wait"."""
        iterator = iter(items)
        while True:
            with self.part("data_wait"):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def figures(self) -> dict[str, float]:
        """`goodput/productive` is a share of `goodput/seconds`, the time of all attempts so far; the parts are seconds."""
        total = max(time.monotonic() - self._began, 1e-9) + self._before
        whole = {
            "productive": max(total - sum(self._seconds.values()), 0.0) / total,
            "seconds": total,
            "attempt": self._attempt,
        }
        parts = {f"{part}_seconds": seconds for part, seconds in self._seconds.items()}
        return {f"{NAME}/{name}": figure for name, figure in (whole | parts).items()}


def productive_seconds(figures: Mapping[str, float]) -> float:
    share, seconds = (figures.get(f"{NAME}/{name}") for name in ("productive", "seconds"))
    return share * seconds if isinstance(share, int | float) and isinstance(seconds, int | float) else 0.0
