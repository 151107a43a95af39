"""Intervals of figures by a bootstrap over documents, whose draws are the same for every model that has answered them.

In each draw as many clusters of documents are drawn, with repetition, as there are. Which ones depends on the ids and clusters
of the documents alone, so that two models' draws are paired: the interval of a difference is that of the draws' differences.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.intervals import Interval, percentile_interval
from mmrlhf_jax.progress import say
from mmrlhf_jax.suite.results import Document, Figure
from mmrlhf_jax.suite.task import Pooling, Row

DRAWS = 1000
_AT_ONCE = 2_000_000  # drawn clusters at a time, for memory
_NAMED = 3  # most groups that are named because they are missing
# Harnesses round their figures; relative to the figure that counts as 100.
ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A figure, and float[DRAWS]: what it is in each draw; None if it was not resampled."""

    value: float
    draws: np.ndarray | None = None

    @property
    def interval(self) -> Interval | None:
        """The percentile interval of the draws; None without any."""
        return None if self.draws is None else percentile_interval(self.draws)


def combined(function: Callable[..., np.ndarray], *estimates: Estimate) -> Estimate:
    """A function of figures, which NumPy can compute for all draws at once.

    The result has draws if all figures have equally many, and if it is finite in each. ZeroDivisionError if its own value is
    not finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(function(*(np.float64(each.value) for each in estimates)))
        draws = None
        numbers = {0 if each.draws is None else len(each.draws) for each in estimates}
        if len(numbers) == 1 and 0 not in numbers:
            draws = function(*(each.draws for each in estimates))
    if not np.isfinite(value):
        raise ZeroDivisionError("the combined figure is not defined")
    return Estimate(value, draws if draws is not None and np.isfinite(draws).all() else None)


def estimate(row: Row, documents: Sequence[Document], groups: Collection[str] | None = None) -> Estimate | None:
    """A row's figure of those documents that are scored, and its draws.

    A scored document without a value for the row has the weight 0: it is in no figure, but it is drawn like the others, so that
    the draws of all rows of a task, and of all models that have these documents scored, are of the same clusters.

    None if no document has weight, or if the row is over groups of which some have none: the others' mean or sum would be
    another figure. `groups` are those that it is over; None: those of all documents, scored or not. There are no draws if there
    is only one cluster, or if the figure is not defined in each draw because too few documents have weight.
    """
    if lacking(row, documents, _groups_of(documents) if groups is None else groups):
        return None
    documents = [each for each in documents if each.missing is None]
    if not documents:
        return None
    values = np.array([each.values.get(row.name) or 0.0 for each in documents], float)
    weights = np.array([_weight(row, each) for each in documents], float)
    of_groups = np.zeros(len(documents), int)
    if row.pooling != "mean":
        of_groups = np.unique([each.group or "" for each in documents], return_inverse=True)[1]
    clusters = _Clusters(documents)
    size = (clusters.count, of_groups.max() + 1)
    above, below = np.zeros(size), np.zeros(size)
    np.add.at(above, (clusters.of, of_groups), weights * values)
    np.add.at(below, (clusters.of, of_groups), weights)
    value = _pooled(np.ones((1, clusters.count)), above, below, row.pooling)[0]
    if not np.isfinite(value):
        return None
    if clusters.count < 2:
        return Estimate(float(value))
    draws = np.concatenate([_pooled(clusters.times(drawn), above, below, row.pooling) for drawn in clusters.drawn()])
    return Estimate(float(value), draws if np.isfinite(draws).all() else None)


def lacking(row: Row, documents: Sequence[Document], groups: Collection[str]) -> str | None:
    """Why a row has no figure if it is over groups of which some have no document with weight, in words; None if all have, and
    for a row that is not over groups."""
    if row.pooling == "mean":
        return None
    lost = sorted(set(groups) - _groups_of([each for each in documents if _weight(row, each)]))
    if not lost:
        return None
    names = ", ".join(lost[:_NAMED]) + (" and others" if len(lost) > _NAMED else "")
    return f"{len(set(groups)) - len(lost)} of {len(set(groups))} categories: {names} missing"


def _groups_of(documents: Sequence[Document]) -> set[str]:
    return {each.group for each in documents if each.group is not None}


def _weight(row: Row, document: Document) -> float:
    there = document.missing is None and document.values.get(row.name) is not None
    return document.weights.get(row.name, 1.0) if there else 0.0


def figure(row: Row, documents: Sequence[Document], value: float) -> Figure:
    """The figure of a harness, `value` on the paper's scale, with the draws of the documents' values.

    If the documents' values do not give it, up to the harness's rounding, that is said, and the figure has no draws.
    """
    found = estimate(row, documents)
    if not agrees(row, found, value):
        given = "none" if found is None else f"{found.value:g}"
        say(f"{row.name}: the harness gives {value:g}, and the documents' values give {given}: it has no interval")
        return Figure(value)
    return Figure(value, draws=None if found.draws is None else tuple(found.draws.tolist()))


def agrees(row: Row, found: Estimate | None, value: float) -> bool:
    """Whether an estimate of documents' values is a harness's figure, up to its rounding."""
    return found is not None and abs(found.value - value) <= ROUNDING * (row.full or 100.0)


class _Clusters:
    """The clusters of documents, in an order that does not depend on that of the documents.

    Attributes:
        count, of: their number, and int[documents]: the cluster of each document.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        names, self.of = np.unique([each.cluster for each in documents], return_inverse=True)
        self.count = len(names)
        text = strict_json.dumps(sorted([each.id, each.cluster] for each in documents))
        self._seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16])

    def drawn(self) -> Iterator[np.ndarray]:
        """int[some draws, count] each time: the clusters of all draws."""
        rng = np.random.default_rng(self._seed)
        some = max(1, _AT_ONCE // self.count)
        for first in range(0, DRAWS, some):
            yield rng.integers(0, self.count, (min(some, DRAWS - first), self.count))

    def times(self, drawn: np.ndarray) -> np.ndarray:
        """float[some draws, count]: how many times each cluster was drawn, for each draw."""
        offsets = np.arange(len(drawn))[:, None] * self.count
        return np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def _pooled(
    times: np.ndarray,
    above: np.ndarray,
    below: np.ndarray,
    pooling: Pooling,
) -> np.ndarray:
    """float[draws]: the figure; NaN where it is not defined.

    `times` is float[draws, clusters], how often each is drawn; `above` and `below` are float[clusters, groups], the sums of the
    documents' weighted values, and of their weights. Of a group that is not drawn there is no mean: the mean of the others
    stands for it, also in a sum.
    """
    number = np.count_nonzero(below.sum(0))
    above, below = times @ above, times @ below
    if pooling == "mean":
        above, below = above.sum(1, keepdims=True), below.sum(1, keepdims=True)
    means = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    there = np.isfinite(means)
    drawn = there.sum(1)
    mean = np.where(drawn > 0, np.where(there, means, 0.0).sum(1), np.nan) / np.maximum(drawn, 1)
    return number * mean if pooling == "sum of groups" else mean
