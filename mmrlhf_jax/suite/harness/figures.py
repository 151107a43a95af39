"""Figures of a task's rows, by the harness's own aggregations, and the documents' values of which they are made."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf_jax.suite.harness import irregular
from mmrlhf_jax.suite.harness.job import Job, reason_of

Key = tuple[str, str]  # the harness's metric, and the filter of the answers


class NoFigure(Exception):
    """The harness gives no figure; the message is the reason."""


class Figures:
    """The figures of documents. `noted`: document -> metric and filter -> what the harness has noted of it."""

    def __init__(self, job: Job, task: Any, noted: Mapping[str, Mapping[Key, Any]]):
        self._job, self._task, self._noted = job, task, noted
        self._keys = {row: [_key(each) for each in metrics] for row, metrics in job.rows.items()}

    def judge_together(self, name: str) -> str | None:
        """Aggregate what belongs to a document, where the harness calls its judge in an aggregation, so that it does so while
        this document is scored. Returns why that was not possible."""
        if self._job.task not in irregular.JUDGED_TOGETHER:
            return None
        try:
            for key in {key for keys in self._keys.values() for key in keys if key in self._noted[name]}:
                self._figure(key, self._together(key, name, self._noted))
        except NoFigure as error:
            return str(error)
        return None

    def all(self, missing: Mapping[str, str]) -> dict[str, Any]:
        """`{"rows": {row: {"value", "missing"}}, "documents": {document: {"values": {row: value}, "weights": {row: weight},
        "group"}}}` of the documents that were scored and are not missing."""
        scored = [name for name in self._noted if name not in missing]
        return {
            "rows": {row: self._row(row, scored) for row in self._keys},
            "documents": {name: self._document(name, scored) for name in scored},
        }

    def drawn(self, row: str, draws: Sequence[Sequence[str]]) -> list[float] | None:
        """The figure of a row in each draw of documents, which may come several times; None if a draw has none."""
        try:
            return [self._sum(row, names) for names in draws]
        except NoFigure:
            return None

    def _row(self, row: str, scored: Sequence[str]) -> dict[str, Any]:
        try:
            return {"value": self._sum(row, scored), "missing": None}
        except NoFigure as error:
            return {"value": None, "missing": str(error)}

    def _sum(self, row: str, names: Sequence[str]) -> float:
        """The sum of the figures that make a row, of those that any of these documents counts for."""
        keys = [key for key in self._keys[row] if any(self._counts(key, name) for name in names)]
        if not keys:
            raise NoFigure("no document was scored that counts for it")
        return sum(self._figure(key, names) for key in keys)

    def _document(self, name: str, scored: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"values": {}, "weights": {}, "group": None}
        for row, keys in self._keys.items():
            for key in keys:
                if not self._counts(key, name) or (value := self._own_value(key, name, scored)) is None:
                    continue
                noted = self._noted[name][key]
                found["values"][row] = found["values"].get(row, 0.0) + value
                if key[0] in irregular.WEIGHTS:
                    found["weights"][row] = irregular.WEIGHTS[key[0]](noted)
                if key[0] in irregular.GROUPS:
                    found["group"] = irregular.GROUPS[key[0]](noted, self._task.aggregation()[key[0]].__globals__)
        return found

    def _own_value(self, key: Key, name: str, scored: Sequence[str]) -> float | None:
        """A document's own value: the figure over it alone, or with the documents that it belongs to; None if there is none."""
        if key[0] in irregular.OWN_VALUES:
            return float(irregular.OWN_VALUES[key[0]](self._noted[name][key]))
        try:
            return self._figure(key, self._together(key, name, scored))
        except NoFigure:
            return None

    def _together(self, key: Key, name: str, among: Sequence[str] | Mapping[str, Any]) -> list[str]:
        """The document and those that the harness reads together with it."""
        belongs = irregular.JUDGED_TOGETHER.get(self._job.task) or irregular.IN_PAIRS.get(key[0])
        if belongs is None:
            return [name]
        own = belongs(self._noted[name][key])
        return [each for each in among if key in self._noted[each] and belongs(self._noted[each][key]) == own]

    def _counts(self, key: Key, name: str) -> bool:
        return key in self._noted[name] and irregular.counts(self._noted[name][key])

    def _figure(self, key: Key, names: Sequence[str]) -> float:
        """The harness's figure over documents."""
        noted = [copy.copy(self._noted[name][key]) for name in names if key in self._noted[name]]  # some change what they get
        aggregation = self._task.aggregation()[key[0]]
        given = {"args": self._task.args} if "args" in inspect.signature(aggregation).parameters else {}
        try:
            value = aggregation(noted, **given)
        except (Exception, SystemExit) as error:  # the task's own code
            raise NoFigure(f"the harness cannot compute {key[0]} ({reason_of(error)})") from None
        if value is None and key[0] in irregular.ZERO_IS_NONE:
            return 0.0
        if not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise NoFigure(f"the harness gives {value!r} for {key[0]}")
        return float(value)


def _key(metric: str) -> Key:
    """METRIC or METRIC,FILTER."""
    name, _, used = metric.partition(",")
    return name, used or "none"
