"""Figures of a suite as JSON, which is stored as figures.json in a run's directory."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.intervals import LEVEL
from mmrlhf_jax.suite.dimensions import Suite
from mmrlhf_jax.suite.figures import Compared, Delta, FigureOrReason, Figures, OfAxis, OfHeadline, OfRow, Run, figures, read_run

FILE, VERSION = "figures.json", 1


def write_figures(directory: epath.PathLike, suite: Suite, against: epath.PathLike | None = None) -> Figures:
    """Make the figures of a run, against another one if it is given, and write them into the run's directory.

    UserError for files of results that are not sound.
    """
    found = figures(suite, read_run(directory, suite), None if against is None else read_run(against, suite))
    path = epath.Path(directory) / FILE
    write_atomically(path, strict_json.dumps(as_json(found), where=f"{path}", ensure_ascii=False, indent=1).encode())
    return found


def as_json(found: Figures) -> dict[str, Any]:
    """The content of figures.json: lists of `axes`, `rows` and `headlines`, each with its name.

    An axis or a row has `model`, `against` and `delta`, the last two null without a base. Each has `value` and `interval`, or
    `missing`: why there is no value.
    """
    suite = found.suite
    axes = [
        {"name": axis.name, "title": axis.title, "dimension": axis.dimension, "direction": _direction(axis)}
        | _compared(found.axes[axis.name])
        for axis in suite.axes
    ]
    rows = [
        {"name": row.name, "title": row.title, "dimension": row.dimension, "direction": _direction(row)}
        | {"unit": row.unit, "full": row.full, "tasks": [task.name for task in row.tasks]}
        | _compared(found.rows[row.name])
        for row in suite.table.values()
    ]
    headlines = [
        {"name": each.name, "title": each.title, "about": f"{each.about} {each.published}"}
        | _figure(found.headlines[each.name])
        for each in suite.headlines
        if each.name in found.headlines
    ]
    runs = {"model": _run(found.model), "against": None if found.base is None else _run(found.base)}
    return {
        "version": VERSION,
        "suite": suite.title,
        "level": LEVEL,
        **runs,
        "headlines": headlines,
        "axes": axes,
        "rows": rows,
    }


def _direction(of: Any) -> str:
    return "higher" if of.higher_is_better else "lower"


def _run(run: Run) -> dict[str, Any]:
    return {"name": run.name, "run": dict(run.about), "harness": sorted({each.harness for each in run.results.values()})}


def _compared(of: Compared) -> dict[str, Any]:
    sides = {"model": of.model, "against": of.base, "delta": of.delta}
    return {name: None if figure is None else _figure(figure) for name, figure in sides.items()}


def _figure(figure: FigureOrReason) -> dict[str, Any]:
    interval = figure.interval
    found = {"value": figure.value, "interval": None if interval is None else list(interval), "missing": figure.missing}
    if isinstance(figure, OfRow):
        coverage = figure.coverage
        found["documents"] = None if coverage is None else dataclasses.asdict(coverage)
        found["harness"] = figure.harness
    elif isinstance(figure, OfAxis):
        found |= {"rows": figure.rows, "of": figure.of, "lacking": list(figure.lacking), "partial": list(figure.partial)}
    elif isinstance(figure, Delta):
        found |= {"documents": figure.documents, "left_out": figure.left_out}
    elif isinstance(figure, OfHeadline):
        found["without_interval"] = figure.without_interval
    return found
