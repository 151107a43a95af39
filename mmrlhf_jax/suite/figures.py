"""The figures of one run, or of a run against another one: of every row of the table, of the axes, and key figures.

They are made from the files of results alone, at any time, also of a part of the tasks.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from etils import epath

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import exists
from mmrlhf_jax.intervals import Interval
from mmrlhf_jax.progress import say
from mmrlhf_jax.suite import run_directory
from mmrlhf_jax.suite.comparing import Pair, obstacle, pair
from mmrlhf_jax.suite.dimensions import Axis, Headline, Suite, TableRow
from mmrlhf_jax.suite.resampling import Estimate, combined
from mmrlhf_jax.suite.results import AGAIN, Coverage, Results, figures_path, read, tasks_in
from mmrlhf_jax.suite.task import Task

NO_RESULTS = "no results"


@dataclasses.dataclass(frozen=True)
class Run:
    """The results in a run's directory: by task, and what run.json says of the run, {} without one. `directory` tells runs of
    one name apart."""

    name: str
    results: Mapping[str, Results]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    directory: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(frozen=True)
class FigureOrReason:
    """A figure, or why there is none, in words."""

    estimate: Estimate | None
    missing: str | None = None

    @property
    def value(self) -> float | None:
        return None if self.estimate is None else self.estimate.value

    @property
    def interval(self) -> Interval | None:
        return None if self.estimate is None else self.estimate.interval


@dataclasses.dataclass(frozen=True)
class OfHeadline(FigureOrReason):
    """A key figure of a comparison. `without_interval` says why a figure has no interval."""

    without_interval: str | None = None


@dataclasses.dataclass(frozen=True)
class OfRow(FigureOrReason):
    """A run's figure of a row.

    Attributes:
        coverage: the documents of its tasks together; None without any results.
        harness: whose metric it is, with the version.
    """

    coverage: Coverage | None = None
    harness: str | None = None


@dataclasses.dataclass(frozen=True)
class OfAxis(FigureOrReason):
    """A run's figure of an axis.

    Attributes:
        rows, of: how many rows there are, and how many there should be.
        lacking: the names of those that are not there.
        partial: the names of rows whose figures are not of all documents.
    """

    rows: int = 0
    of: int = 0
    lacking: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Delta(FigureOrReason):
    """The figure of the model minus that of the base, on the documents that are scored in both.

    Attributes:
        documents: how many these are.
        left_out: how many others are scored in one of the two.
    """

    documents: int = 0
    left_out: int = 0


_Of = TypeVar("_Of", OfRow, OfAxis)


@dataclasses.dataclass(frozen=True)
class Compared(Generic[_Of]):
    """The figures of a row or an axis; `base` and `delta` are None if there is nothing to compare with."""

    model: _Of
    base: _Of | None = None
    delta: Delta | None = None


@dataclasses.dataclass(frozen=True)
class Figures:
    """All figures. Rows and axes are by name, in the order of the suite; `headlines` is empty without a base, and so is
    `parts`: the differences of the tasks' own rows, of which some together make a row of the table."""

    suite: Suite
    model: Run
    base: Run | None
    rows: Mapping[str, Compared[OfRow]]
    axes: Mapping[str, Compared[OfAxis]]
    headlines: Mapping[str, OfHeadline]
    parts: Mapping[str, Delta]


def read_run(directory: epath.PathLike, suite: Suite) -> Run:
    """The results in a run's directory. UserError for files that are not sound; results of other tasks are reported."""
    directory = epath.Path(directory)
    about = run_directory.read(directory) if exists(directory / run_directory.FILE) else {}
    about.pop("version", None)  # of the file's format
    found = {}
    for task in tasks_in(directory):
        if task in suite.tasks:
            found[task] = read_results(directory, suite.tasks[task])
        else:
            _say_left_out(figures_path(directory, task), task, suite.title)
    name = about.get("model")
    return Run(name if isinstance(name, str) else directory.name, found, about, os.fspath(directory))


@functools.cache
def _say_left_out(path: epath.Path, task: str, suite: str) -> None:
    """Once: a command reads a run several times."""
    say(f"{path}: {task} is no task of {suite}; it is left out")


def read_results(directory: epath.PathLike, task: Task) -> Results:
    """The results of a task. UserError for files that are not sound, or that have other rows than the task."""
    found = read(directory, task.name)
    if unknown := found.figures.keys() - {row.name for row in task.rows}:
        path = figures_path(directory, task.name)
        raise UserError(f"{path}: rows has {shown(min(unknown))}, which is no row of {task.name}; {AGAIN}")
    return found


def figures(suite: Suite, model: Run, base: Run | None = None) -> Figures:
    """The figures of a run, and its differences from a base."""
    rows = [_of_rows(suite, run) for run in (model, base) if run is not None]
    axes = [_of_axes(suite, run, found) for run, found in zip((model, base), rows, strict=False)]
    if base is None:
        return Figures(suite, model, None, _alone(rows[0]), _alone(axes[0]), {}, {})
    pairs, obstacles = _pairs(suite, model, base)
    tables = [suite.whole({name: getattr(each, side) for name, each in pairs.items()}) for side in ("model", "base")]
    row_deltas = {name: _row_delta(row, tables, pairs, obstacles) for name, row in suite.table.items()}
    axis_deltas = {axis.name: _axis_delta(suite, axis, tables, row_deltas, axes) for axis in suite.axes}
    return Figures(
        suite,
        model,
        base,
        {name: Compared(rows[0][name], rows[1][name], row_deltas[name]) for name in suite.table},
        {name: Compared(axes[0][name], axes[1][name], axis_deltas[name]) for name in axis_deltas},
        {each.name: _headline(suite, each, tables, (model, base)) for each in suite.headlines},
        {name: Delta(each.delta, None, each.documents, each.left_out) for name, each in pairs.items()}
        | {name: Delta(None, reason) for name, reason in obstacles.items()},
    )


def _alone(found: Mapping[str, _Of]) -> dict[str, Compared[_Of]]:
    return {name: Compared(each) for name, each in found.items()}


# One run --------------------------------------------------------------------------------------------------------------


def _of_rows(suite: Suite, run: Run) -> dict[str, OfRow]:
    parts = {
        name: Estimate(figure.value, None if figure.draws is None else np.array(figure.draws))
        for results in run.results.values()
        for name, figure in results.figures.items()
        if figure.value is not None
    }
    whole = suite.whole(parts)
    return {name: _of_row(row, run, whole.get(name)) for name, row in suite.table.items()}


def _of_row(row: TableRow, run: Run, found: Estimate | None) -> OfRow:
    results = [run.results[task.name] for task in row.tasks if task.name in run.results]
    coverage = _together(each.coverage for each in results) if results else None
    harness = ", ".join(dict.fromkeys(each.harness for each in results)) or None
    return OfRow(found, None if found is not None else _why_missing(row, run), coverage, harness)


def _why_missing(row: TableRow, run: Run) -> str:
    reasons: dict[str, list[str]] = {}
    for task in row.tasks:
        for part in (each for each in row.parts if each in task.rows):
            figure = run.results[task.name].figures.get(part.name) if task.name in run.results else None
            if figure is None or figure.value is None:
                missing = NO_RESULTS if task.name not in run.results else "its task gives no figure"
                reasons.setdefault((figure and figure.missing) or missing, []).append(part.title)
    if len(reasons) == 1 and len(next(iter(reasons.values()))) == len(row.parts):
        return next(iter(reasons))
    return "; ".join(f"{', '.join(titles)}: {reason}" for reason, titles in reasons.items())


def _together(coverages: Iterable[Coverage]) -> Coverage:
    coverages = list(coverages)
    missing = sum((Counter(each.missing) for each in coverages), Counter())
    expected, answered, scored = (sum(getattr(each, key) for each in coverages) for key in ("expected", "answered", "scored"))
    return Coverage(expected, answered, scored, dict(sorted(missing.items())))


def _of_axes(suite: Suite, run: Run, rows: Mapping[str, OfRow]) -> dict[str, OfAxis]:
    table = {name: each.estimate for name, each in rows.items() if each.estimate is not None}
    return {axis.name: _of_axis(suite, axis, run, rows, table) for axis in suite.axes}


def _of_axis(suite: Suite, axis: Axis, run: Run, rows: Mapping[str, OfRow], table: Mapping[str, Estimate]) -> OfAxis:
    wanted, lacking = suite.rows(axis), suite.lacking(axis, table)
    there = [row for row in wanted if row.name not in lacking]
    missing = _mixture(there, run)
    if lacking:
        missing = f"{len(there)} of {len(wanted)} rows: {', '.join(suite.table[name].title for name in lacking)} missing"
    partial = tuple(row.name for row in there if rows[row.name].coverage.scored < rows[row.name].coverage.expected)
    found = None if missing is not None else suite.mean(axis, table)
    return OfAxis(found, missing, len(there), len(wanted), lacking, partial)


def _mixture(rows: Iterable[TableRow], run: Run) -> str | None:
    """Why rows of a run have no common mean: one harness in two versions, the paper's metrics with corrected ones, or verdicts
    of two judges, of whom one may judge attacks and another one everything else."""
    results = [run.results[task.name] for row in rows for task in row.tasks]
    versions: dict[str, set[str]] = {}
    for each in results:
        versions.setdefault(each.harness.split(" ")[0], set()).add(each.harness)
    for found in versions.values():
        if len(found) > 1:
            return f"its rows are by {' and '.join(sorted(found))}"
    modes = {str(each.settings["mode"]) for each in results if each.settings.get("mode") is not None}
    if len(modes) > 1:
        return f"its rows are of different modes: {', '.join(sorted(modes))}"
    for attacks in (False, True):
        settings = [each.settings for each in results if ("classifier" in each.settings) == attacks]
        judges = {_judge(each) for each in settings if each.get("judge") is not None}
        if len(judges) > 1:
            return f"its rows are judged by {' and '.join(sorted(judges))}"
    return None


def _judge(settings: Mapping[str, Any]) -> str:
    return f"{settings['judge']}{' as a classifier' if settings.get('classifier') else ''}"


# Two runs -------------------------------------------------------------------------------------------------------------


def _pairs(suite: Suite, model: Run, base: Run) -> tuple[dict[str, Pair], dict[str, str]]:
    """(row of a task -> its figures on common documents, row of a task -> why there are none)."""
    pairs, obstacles = {}, {}
    for name, task in suite.tasks.items():
        both = [run.results.get(name) for run in (model, base)]
        reason = NO_RESULTS if None in both else obstacle(*both)
        for row in task.rows:
            found = reason or pair(row, *both)
            if isinstance(found, Pair):
                pairs[row.name] = found
            else:
                obstacles[row.name] = found
    return pairs, obstacles


def _row_delta(
    row: TableRow, tables: list[dict[str, Estimate]], pairs: Mapping[str, Pair], obstacles: Mapping[str, str]
) -> Delta:
    reasons = dict.fromkeys(obstacles[part.name] for part in row.parts if part.name in obstacles)
    if reasons:
        return Delta(None, "; ".join(reasons))
    # Several rows of one task are of the same documents.
    of_tasks = [[pairs[part.name] for part in row.parts if part in task.rows] for task in row.tasks]
    documents, left_out = (
        sum(max(getattr(each, key) for each in found) for found in of_tasks) for key in ("documents", "left_out")
    )
    return Delta(combined(np.subtract, *(table[row.name] for table in tables)), None, documents, left_out)


def _axis_delta(
    suite: Suite,
    axis: Axis,
    tables: list[dict[str, Estimate]],
    row_deltas: Mapping[str, Delta],
    axes: list[dict[str, OfAxis]],
) -> Delta:
    for found in axes:
        if found[axis.name].missing is not None:
            return Delta(None, found[axis.name].missing)
    deltas = {row.title: row_deltas[row.name] for row in suite.rows(axis)}
    if refused := {title: each.missing for title, each in deltas.items() if each.missing is not None}:
        return Delta(None, "; ".join(f"{title}: {reason}" for title, reason in refused.items()))
    documents, left_out = (sum(getattr(each, key) for each in deltas.values()) for key in ("documents", "left_out"))
    return Delta(combined(np.subtract, *(suite.mean(axis, table) for table in tables)), None, documents, left_out)


def _headline(suite: Suite, headline: Headline, tables: list[dict[str, Estimate]], runs: Iterable[Run]) -> OfHeadline:
    if without := [name for name in headline.rows if any(name not in table for table in tables)]:
        titles = "; ".join(suite.table[name].title for name in without)
        return OfHeadline(None, f"missing or not comparable: {titles}")
    for run in runs:
        if mixed := _mixture((suite.table[name] for name in headline.rows), run):
            return OfHeadline(None, mixed)
    found = headline.change(*tables)
    if found is None:
        return OfHeadline(None, f"{headline.divisor} is 0")
    if found.interval is not None:
        return OfHeadline(found)
    if without := [name for name in headline.rows if any(table[name].draws is None for table in tables)]:
        return OfHeadline(found, None, f"{len(without)} of its {len(headline.rows)} rows have no interval")
    return OfHeadline(found, None, f"in some draws {headline.divisor} is 0")
