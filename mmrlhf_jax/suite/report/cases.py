"""The documents on which two models differ most, chosen evenly from all benchmarks, for people who look at the answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.suite.results import Document, Results
from mmrlhf_jax.suite.task import Row

Direction = Literal["better", "worse"]
DIRECTIONS: tuple[Direction, ...] = ("better", "worse")
MOST, MOST_EACH = 160, 12  # most cases in all, and of a benchmark and a direction


@dataclasses.dataclass(frozen=True)
class Both:
    """A task's results of two models, `model` and `base`, which can be compared (`comparing.obstacle`). `benchmark` is the
    title of its benchmark."""

    benchmark: str
    rows: Sequence[Row]
    model: Results
    base: Results


@dataclasses.dataclass(frozen=True)
class Case:
    """A document that two models answered.

    Attributes:
        row: the row in which the answers differ most, on its scale.
        share: by how much the model is better, as a share of the widest difference in this row between any two documents.
    """

    benchmark: str
    rows: Sequence[Row]
    model: Document
    base: Document
    row: Row
    share: float

    @property
    def direction(self) -> Direction:
        return "better" if self.share > 0 else "worse"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The chosen cases in the order of the benchmarks, those that differ most first.

    Attributes:
        counts: benchmark -> number of documents of each direction, chosen or not.
        compared: number of documents that both models have values for.
    """

    cases: Sequence[Case]
    counts: Mapping[str, Mapping[Direction, int]]
    compared: int


def choose(pairs: Iterable[Both], most: int = MOST, most_each: int = MOST_EACH) -> Chosen:
    """The cases that differ most. Benchmarks and directions take turns, so that none fills the page."""
    found: dict[tuple[str, Direction], list[Case]] = defaultdict(list)
    counts: dict[str, dict[Direction, int]] = {}
    compared = 0
    for each in pairs:
        counts.setdefault(each.benchmark, dict.fromkeys(DIRECTIONS, 0))
        documents = _documents(each)
        compared += len(documents)
        for case in _cases(each, documents):
            found[case.benchmark, case.direction].append(case)
            counts[case.benchmark][case.direction] += 1
    queues = [sorted(cases, key=_order)[:most_each] for cases in found.values()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    taken = list(itertools.islice((case for case in turns if case is not None), most))
    places = {benchmark: place for place, benchmark in enumerate(counts)}
    taken.sort(key=lambda case: (places[case.benchmark], *_order(case)))
    return Chosen(taken, counts, compared)


def _order(case: Case) -> tuple[float, str, str]:
    """The widest difference first. Among equal ones, of which there may be thousands, a digest of the id decides, so that they
    are not all from the beginning of the data."""
    return -abs(case.share), text_digest(case.model.id), case.model.id


def _documents(pair: Both) -> list[tuple[Document, Document]]:
    """The documents that both models have values for."""
    of_base = {document.id: document for document in pair.base.documents if document.missing is None}
    mine = [document for document in pair.model.documents if document.missing is None]
    return [(document, of_base[document.id]) for document in mine if document.id in of_base]


def _cases(pair: Both, documents: Sequence[tuple[Document, Document]]) -> Iterator[Case]:
    """The documents in which the models differ, each with the row in which they differ most."""
    widest = {row.name: _spread(row.name, documents) for row in pair.rows}
    for model, base in documents:
        shares = {}
        for row in pair.rows:
            new, old = model.values.get(row.name), base.values.get(row.name)
            if new is not None and old is not None and new != old:
                shares[row.name] = (new - old) / widest[row.name] * (1 if row.higher_is_better else -1)
        if shares:
            name = max(shares, key=lambda name: abs(shares[name]))
            row = next(row for row in pair.rows if row.name == name)
            yield Case(pair.benchmark, pair.rows, model, base, row, shares[name])


def _spread(row: str, documents: Sequence[tuple[Document, Document]]) -> float:
    """The difference between the largest and the smallest value of any document, by which rows of different units are
    compared."""
    values = [value for both in documents for each in both if (value := each.values.get(row)) is not None]
    return max(values) - min(values) if values else 0.0
