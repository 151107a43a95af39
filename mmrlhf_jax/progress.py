"""Progress with an ETA for long operations: a live line on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")

PLAIN_SECONDS = 10.0
LIVE_SECONDS = 0.2


class Progress:
    """Counts to `total` and prints to stderr. `figures` of `update` are shown after the count."""

    def __init__(self, description: str, total: int):
        self.description, self.total, self.done = description, total, 0
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self.shown = self.started

    def update(self, figures: str = "", advance: int = 1) -> None:
        """Count `advance` more items as done, and print a line if enough time has passed or all are done."""
        self.done += advance
        now = time.monotonic()
        last = self.done >= self.total
        if now - self.shown < (LIVE_SECONDS if self.live else PLAIN_SECONDS) and not last:
            return
        self.shown = now
        elapsed = now - self.started
        eta = elapsed / self.done * (self.total - self.done)
        clock = f"{clock_time(elapsed)} elapsed" if last else f"ETA {clock_time(eta)}"
        line = f"{self.description}: {self.done}/{self.total}, {clock}{', ' + figures if figures else ''}"
        sys.stderr.write(f"\r\x1b[K{line}{chr(10) if last else ''}" if self.live else line + "\n")
        sys.stderr.flush()


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with progress. `total` is required if `items` has no length."""
    progress = Progress(description, len(items) if total is None and isinstance(items, Sized) else total or 0)
    for item in items:
        yield item
        progress.update()


def clock_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def say(message: str) -> None:
    """Print a line for the user to stderr. Results for other programs go to files or stdout."""
    print(message, file=sys.stderr, flush=True)


class StagedProgress:
    """Progress for a pass of several named stages, called as `progress(stage, done, total)`."""

    def __init__(self) -> None:
        self._stages: dict[str, Progress] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        shown = self._stages.setdefault(stage, Progress(stage, total))
        shown.update(advance=done - shown.done)
