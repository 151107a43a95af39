"""Progress with an ETA for long operations: a live line on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

Item = TypeVar("Item")

PLAIN_SECONDS = 10.0
LIVE_SECONDS = 0.2
CLEAR = "\r\x1b[K"  # of a terminal's line


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
        self._show(now, figures)

    def begin(self, item: str) -> None:
        """Say at once which item is worked on next."""
        self._show(time.monotonic(), item)

    def left(self, now: float) -> float | None:
        """Seconds until all are done, if the others take as long as those that are done, of which there is one at least. None
        if that is not known yet."""
        return (now - self.started) / self.done * (self.total - self.done)

    def _show(self, now: float, figures: str) -> None:
        self.shown = now
        elapsed, last = now - self.started, self.done >= self.total
        parts = [f"{self.description}: {self.done}/{self.total}"]
        if last:
            parts.append(f"{clock_time(elapsed)} elapsed")
        elif self.done and (left := self.left(now)) is not None:
            parts.append(f"ETA {clock_time(left)}")
        line = ", ".join([*parts, figures] if figures else parts)
        sys.stderr.write(f"{CLEAR}{line}{chr(10) if last else ''}" if self.live else line + "\n")
        sys.stderr.flush()


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with progress. `total` is required if `items` has no length."""
    progress = Progress(description, len(items) if total is None and isinstance(items, Sized) else total or 0)
    for item in items:
        yield item
        progress.update()


def announce(items: Sequence[str], description: str) -> Iterator[str]:
    """Iterate over a few items that take long: each is shown before it is worked on, so that the first is not silent."""
    progress = Progress(description, len(items))
    for item in items:
        progress.begin(item)
        yield item
        progress.done += 1
    if items:
        progress.begin("")


def clock_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def counted(number: int, what: str) -> str:
    """A number of things in words: "1 answer", "2,000 answers"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share in words: "12.5 %"."""
    return f"{100 * share:.1f} %"


def say(message: str) -> None:
    """Print a line for the user to stderr. Results for other programs go to files or stdout."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def said_if_slow(message: str, seconds: float = PLAIN_SECONDS) -> Iterator[None]:
    """A context that prints a line if it is not left within some seconds."""
    timer = threading.Timer(seconds, say, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class StagedProgress:
    """Progress for a pass of several named stages, called as `progress(stage, done, total)`."""

    def __init__(self) -> None:
        self._stages: dict[str, Progress] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        shown = self._stages.setdefault(stage, Progress(stage, total))
        shown.update(advance=done - shown.done)
