"""Figures of a task's rows, by the harness's own aggregations, and the documents' values of which they are made."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf_jax.suite.harness import irregular
from mmrlhf_jax.suite.harness.groups import Groups
from mmrlhf_jax.suite.harness.job import Job, reason_of
from mmrlhf_jax.suite.harness.module_state import ModuleState
from mmrlhf_jax.suite.reasons import APART

Key = tuple[str, str]  # the harness's metric, and the filter of the answers


class NoFigure(Exception):
    """The harness gives no figure; the message is the reason."""


class HarnessFigures:
    """The figures of documents. `noted`: document -> metric and filter -> what the harness has noted of it."""

    def __init__(self, job: Job, task: Any, noted: Mapping[str, Mapping[Key, Any]], groups: Groups):
        self._task, self._noted, self._groups = task, noted, groups
        self._keys = {row: [_key(each) for each in metrics] for row, metrics in job.rows.items()}
        self._aggregations = task.aggregation()
        self._states = {key[0]: ModuleState(self._aggregations[key[0]]) for keys in self._keys.values() for key in keys}

    def categories(self, documents: Any) -> dict[str, str]:
        """Document -> its category, of all that the data set has, if the figures are means or sums over categories. `documents`
        are those of lmms-eval."""
        for metric in (key[0] for keys in self._keys.values() for key in keys if key[0] in irregular.CATEGORIES):
            rule, module = irregular.CATEGORIES[metric], self._aggregations[metric].__globals__
            found = enumerate(rule.of(row[rule.column], module) for row in documents.select_columns([rule.column]))
            return {str(number): name for number, name in found if name is not None}
        return {}

    def judge_together(self, name: str) -> str | None:
        """Let the harness call its judge about the group of a document, if it does so about groups and this is the last one of
        the group that is scored. Returns why that was not possible."""
        if not (self._groups.judged and self._groups.are_there(name, self._noted)):
            return None
        try:
            for key in {key for keys in self._keys.values() for key in keys if self._counts(key, name)}:
                self._value(key, name)
        except NoFigure as error:
            return str(error)
        return None

    def all(self, missing: Mapping[str, str]) -> dict[str, Any]:
        """`{"rows": {row: {"value", "missing"}}, "documents": {document: {"values": {row: value}, "weights": {row: weight}}},
        "missing": {document: reason}}` of the documents that were scored and are not missing, nor apart from their group."""
        there = {name: None for name in self._noted if name not in missing}
        apart = dict.fromkeys(self._groups.apart(there), APART)
        scored = [name for name in there if name not in apart]
        return {
            "rows": {row: self._row(row, scored) for row in self._keys},
            "documents": {name: self._document(name) for name in scored},
            "missing": apart,
        }

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

    def _document(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"values": {}, "weights": {}}
        for row, keys in self._keys.items():
            for key in keys if self._groups.has_value(name) else ():
                if not self._counts(key, name) or (value := self._own_value(key, name)) is None:
                    continue
                noted = self._noted[name][key]
                found["values"][row] = found["values"].get(row, 0.0) + value
                if key[0] in irregular.WEIGHTS:
                    found["weights"][row] = irregular.WEIGHTS[key[0]](noted)
        return found

    def _own_value(self, key: Key, name: str) -> float | None:
        """A document's own value; None if there is none."""
        try:
            return self._value(key, name)
        except NoFigure:
            return None

    def _value(self, key: Key, name: str) -> float:
        """A document's own value: the figure over it and what is scored with it, unless it is irregular."""
        if key[0] in irregular.OWN_VALUES:
            return float(irregular.OWN_VALUES[key[0]](self._noted[name][key]))
        group = self._groups.of(name)
        if self._groups.value is None:
            return self._figure(key, group)
        try:
            return self._groups.value([self._noted[each][key] for each in group], self._aggregations[key[0]].__globals__)
        except (Exception, SystemExit) as error:  # the task's own code
            raise NoFigure(f"the harness cannot compute {key[0]} ({reason_of(error)})") from None

    def _counts(self, key: Key, name: str) -> bool:
        return key in self._noted[name] and irregular.counts(self._noted[name][key])

    def _figure(self, key: Key, names: Sequence[str]) -> float:
        """The harness's figure over documents."""
        noted = [copy.copy(self._noted[name][key]) for name in names if key in self._noted[name]]  # some change what they get
        if key[0] in irregular.NOT_DEFINED and irregular.NOT_DEFINED[key[0]](noted):
            return sum(float(irregular.OWN_VALUES[key[0]](each)) for each in noted) / len(noted)
        aggregation = self._aggregations[key[0]]
        given = {"args": self._task.args} if "args" in inspect.signature(aggregation).parameters else {}
        try:
            with self._states[key[0]].kept():
                value = aggregation(noted, **given)
        except (Exception, SystemExit) as error:  # the task's own code
            raise NoFigure(f"the harness cannot compute {key[0]} ({reason_of(error)})") from None
        if value is None and key[0] in irregular.ZERO_IS_NONE:
            return 0.0
        if not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise NoFigure(f"the harness gives {value!r} for {key[0]}")
        fixed = irregular.DIVIDED_BY.get(key[0])
        return float(value) if fixed is None else float(value) * fixed / len(noted)


def _key(metric: str) -> Key:
    """METRIC or METRIC,FILTER."""
    name, _, used = metric.partition(",")
    return name, used or "none"
