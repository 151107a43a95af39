"""Where a run's time went: steps, and everything that is not a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
PARTS = ("start", "compile", "data_wait", "checkpoint", "evaluation")


class Goodput:
    """Seconds of this attempt by part; what belongs to none of them was productive."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - started

    def started(self) -> None:
        """The first step is next: all until now was starting."""
        self._seconds["start"] = time.monotonic() - self._began

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """Iterate, and count the time that the next item is waited for."""
        iterator = iter(items)
        while True:
            with self.part("data_wait"):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def figures(self) -> dict[str, float]:
        """`goodput/productive` is a share of the time so far; the others are seconds."""
        total = max(time.monotonic() - self._began, 1e-9)
        lost = sum(self._seconds.values())
        return {"goodput/productive": max(total - lost, 0.0) / total} | {
            f"goodput/{name}_seconds": seconds for name, seconds in self._seconds.items()
        }
