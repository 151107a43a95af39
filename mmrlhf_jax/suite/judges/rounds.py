"""Documents that the harness scores in rounds, since a judge replies later than it is asked (`loopback.py`).

This file runs in the environment of the harness as well: it imports nothing beyond Python's own library.
"""

from __future__ import annotations

import itertools
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from mmrlhf_jax import strict_json
from mmrlhf_jax.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 128  # documents whose questions are asked together; a question may hold a picture
ROUNDS = 8  # how often a document is scored at most; each question can depend on the reply to the one before
ENDLESS = "the harness asked its judge without end"


class Asked(NamedTuple):
    """What the harness asked while a document was scored: whether anything has no reply yet, and why one has none at all."""

    wanted: bool
    failure: str | None


class Control(Protocol):
    """What decides about the replies: `Loopback`, or `Remote` from another process."""

    def begin(self, document: str) -> None:
        """What is asked from now on is about this document."""
        ...

    def end(self) -> Asked:
        """What was asked since `begin`."""
        ...

    def judge(self) -> None:
        """Give all that was wanted to the judge, and wait for it."""
        ...


class Remote:
    """The control of a `Loopback` in another process. `url` is its base URL."""

    def __init__(self, url: str):
        self._url = f"{url.rstrip('/')}/control"
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # never over a proxy

    def begin(self, document: str) -> None:
        self._send("begin", document)

    def end(self) -> Asked:
        return Asked(**self._send("end"))

    def judge(self) -> None:
        self._send("judge")

    def _send(self, action: str, document: str | None = None):
        body = strict_json.dumps({"document": document}).encode()
        with self._open(urllib.request.Request(f"{self._url}/{action}", body, method="POST")) as reply:
            return strict_json.loads(reply.read())


def scored(
    control: Control,
    documents: Iterable[Item],
    name: Callable[[Item], str],
    score: Callable[[Item], Result],
    doing: str,
    total: int,
) -> Iterator[tuple[Item, Result, str | None]]:
    """Yield (document, result of its last scoring, why it is missing) in order; None: it is not missing.

    `score` lets the harness score a document, during which it calls its judge; it is called once, and again if the harness
    asked what nobody had asked before. `name` gives the document's id, `doing` and `total` are for the progress.
    """
    progress, source = Progress(doing, total), iter(documents)
    while here := list(itertools.islice(source, AT_ONCE)):
        found: dict[int, tuple[Result, str | None]] = {}
        left = list(range(len(here)))
        for _ in range(ROUNDS):
            wanting = []
            for place in left:
                result, asked = _during(control, name(here[place]), lambda place=place: score(here[place]))
                found[place] = result, asked.failure
                if asked.wanted:
                    wanting.append(place)
            if not wanting:
                break
            control.judge()
            left = wanting
        else:
            found |= {place: (found[place][0], ENDLESS) for place in wanting}
        for place, document in enumerate(here):
            progress.update()
            yield document, *found[place]


def _during(control: Control, document: str, score: Callable[[], Result]) -> tuple[Result, Asked]:
    control.begin(document)
    try:
        result = score()
    finally:
        asked = control.end()
    return result, asked
