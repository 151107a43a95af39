"""Documents that the harness scores in rounds, since a judge replies later than it is asked (`loopback.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from mmrlhf_jax.progress import Progress
from mmrlhf_jax.suite.judges.judging import FAILED
from mmrlhf_jax.suite.judges.loopback import JudgeCalls, Loopback

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 128  # documents whose questions are asked together; a question may hold a picture
ROUNDS = 8  # how often a document is scored at most; each question can depend on the reply to the one before
ENDLESS = "the harness asked its judge without end"


def scored(
    loopback: Loopback,
    documents: Iterable[Item],
    name: Callable[[Item], str],
    score: Callable[[Item], Result],
    doing: str,
    total: int,
    least: Callable[[Result], int] = lambda result: 0,
) -> Iterator[tuple[Item, Result, str | None]]:
    """Yield (document, result of its last scoring, why it is missing) in order; None: it is not missing.

    `score` lets the harness score a document, during which it calls its judge; it is called once, and again if the harness
    asked what nobody had asked before. `name` gives the document's id, `doing` and `total` are for the progress. `least` says
    of a result how many calls of the judge it must rest on: the harness catches its own errors, and goes on with -1 or 0.
    """
    progress, source = Progress(doing, total), iter(documents)
    while here := list(itertools.islice(source, AT_ONCE)):
        found: dict[int, tuple[Result, str | None]] = {}
        left = list(range(len(here)))
        for _ in range(ROUNDS):
            wanting = []
            for place in left:
                result, asked = _during(loopback, name(here[place]), lambda place=place: score(here[place]))
                silent = not asked.wanted and asked.made < least(result)
                found[place] = result, asked.failure or (FAILED if silent else None)
                if asked.wanted:
                    wanting.append(place)
            if not wanting:
                break
            loopback.judge()
            left = wanting
        else:
            found |= {place: (found[place][0], ENDLESS) for place in wanting}
        for place, document in enumerate(here):
            progress.update()
            yield document, *found[place]


def _during(loopback: Loopback, document: str, score: Callable[[], Result]) -> tuple[Result, JudgeCalls]:
    loopback.begin(document)
    try:
        result = score()
    finally:
        asked = loopback.end()
    return result, asked
