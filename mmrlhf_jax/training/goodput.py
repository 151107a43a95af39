"""Where a run's time went: steps, and everything that is not a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
PARTS = ("start", "compile", "data_wait", "checkpoint", "evaluation", "repeated")


class Goodput:
    """Seconds of this attempt by part; what belongs to none of them was productive.

    `repeated` are seconds of an earlier attempt whose steps this one does again: they count as its own, and as lost.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._attempt = 1
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

    def follows(self, attempts: int, repeated: float) -> None:
        """So many attempts came before, of whose steps those that took `repeated` seconds are to be done again."""
        self._attempt = attempts + 1
        self._seconds["repeated"] = repeated

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
        """`goodput/productive` is a share of the time so far, `goodput/seconds`; the others are seconds."""
        total = max(time.monotonic() - self._began, 1e-9) + self._seconds["repeated"]
        lost = sum(self._seconds.values())
        return {
            "goodput/productive": max(total - lost, 0.0) / total,
            "goodput/seconds": total,
            "goodput/attempt": self._attempt,
        } | {f"goodput/{name}_seconds": seconds for name, seconds in self._seconds.items()}
