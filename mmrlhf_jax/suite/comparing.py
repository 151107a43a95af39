"""Two models' results of a task, on the documents that are scored in both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf_jax.errors import shown
from mmrlhf_jax.suite.resampling import Estimate, agrees, combined, estimate, lacking
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.task import Row


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row's figures of a model and of its base on the same documents, with paired draws.

    Attributes:
        model, base: the figures.
        documents: how many documents they are of, which are those that are scored in both.
        left_out: how many others are scored in one of the two.
    """

    model: Estimate
    base: Estimate
    documents: int
    left_out: int

    @property
    def delta(self) -> Estimate:
        return combined(np.subtract, self.model, self.base)


def obstacle(model: Results, base: Results) -> str | None:
    """Why results of the same task cannot be compared, in words; None if they can.

    They must be of the same harness and version, made with the same settings, and the documents that are scored in both must
    have the same content.
    """
    if model.harness != base.harness:
        return f"one is by {model.harness}, the other one by {base.harness}"
    if differing := sorted(_differing(model.settings, base.settings)):
        return f"made with other settings: {', '.join(differing[:3])}{' and others' if len(differing) > 3 else ''}"
    others = {each.id: each for each in base.documents if each.missing is None}
    for each in model.documents:
        other = None if each.missing is not None else others.get(each.id)
        if other is not None and (what := _other_content(each, other)):
            return f"document {shown(each.id)} has another {what}"
    return None


def pair(row: Row, model: Results, base: Results) -> Pair | str:
    """The figures of a row on the documents that are scored in both; or in words why there are none. For results without
    `obstacle`.

    A document that has a value for one of the two models alone, because the other one's answer has weight 0, counts in that
    figure alone: where an answer names no object, its share of wrong ones is not defined, and the wrong ones that the other
    model names in the same picture are a difference.
    """
    for results in (model, base):
        if (missing := _missing(row, results)) is not None:
            return missing
    both = [_scored(results) for results in (model, base)]
    common, left_out = sorted(both[0].keys() & both[1].keys()), len(both[0].keys() ^ both[1].keys())
    if not common:
        return "the two have no scored document in common"
    figures = [results.figures[row.name] for results in (model, base)]
    made = [estimate(row, list(documents.values())) for documents in both]
    given = [agrees(row, found, figure.value) for found, figure in zip(made, figures, strict=True)]
    if not left_out:
        draws = [found.draws for found in made] if all(given) else _stored(figures) if not any(given) else (None, None)
        return Pair(*(Estimate(figure.value, each) for figure, each in zip(figures, draws, strict=True)), len(common), 0)
    if not all(given):
        return f"{left_out} documents are scored in one of the two, and the figure is not made of documents' values"
    groups = {each.group for results in (model, base) for each in results.documents} - {None}
    of_common = [[documents[each] for each in common] for documents in both]
    if reason := next(filter(None, (lacking(row, documents, groups) for documents in of_common)), None):
        return f"the documents that are scored in both are of {reason}"
    made = [estimate(row, documents, groups) for documents in of_common]
    return "the documents in common have no weight" if None in made else Pair(*made, len(common), left_out)


def _stored(figures: Sequence[Figure]) -> Sequence[np.ndarray | None]:
    """The draws of figures that are not made of documents' values: they are of the same documents, and so paired."""
    draws = [figure.draws for figure in figures]
    return (None, None) if None in draws or len({len(each) for each in draws}) > 1 else [np.array(each) for each in draws]


def _missing(row: Row, results: Results) -> str | None:
    figure = results.figures.get(row.name)
    return "it has no figure" if figure is None else figure.missing


def _scored(results: Results) -> dict[str, Document]:
    """The documents that are scored, by id."""
    return {each.id: each for each in results.documents if each.missing is None}


def _differing(one: Any, other: Any, key: str = "") -> set[str]:
    """Dotted names of settings that differ, with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = one.keys() | other.keys()
        return {
            found
            for name in names
            for found in _differing(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
        }
    return set() if one == other else {f"{key} {shown(one, 40)} and {shown(other, 40)}"}


def _other_content(one: Document, other: Document) -> str | None:
    """What of a document differs between two runs that should have asked the same."""
    for what in ("prompt", "reference", "cluster"):
        if getattr(one, what) != getattr(other, what):
            return what
    return "picture or video" if one.media != other.media and one.media and other.media else None
