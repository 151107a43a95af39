"""Figures of a suite as JSON, which is stored as figures.json, and as a table of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.suite.dimensions import Suite
from mmrlhf_jax.suite.figures import NO_RESULTS, Compared, Delta, Figure, Figures, OfAxis, OfRow, Run, figures, read_run
from mmrlhf_jax.suite.resampling import LEVEL

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
        {"name": each.name, "title": each.title, "about": each.about} | _figure(found.headlines[each.name])
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


def as_lines(found: Figures) -> Iterator[str]:
    """The lines of the table: every dimension of which there are results, with its rows, and the key figures."""
    suite, base = found.suite, found.base is not None
    width = max(len(each.title) for each in (*suite.table.values(), *suite.axes)) + 4
    heads = ["", _short(found.model.name)] + ([_short(found.base.name), "difference"] if base else []) + ["scored"]
    yield _line(width, heads)
    without = []
    for dimension, title in suite.dimensions.items():
        rows = [row for row in suite.table.values() if row.dimension == dimension]
        if all(found.rows[row.name].model.coverage is None for row in rows):
            without.append(title)
            continue
        for axis in (each for each in suite.axes if each.dimension == dimension):
            of = found.axes[axis.name]
            yield _line(width, [f"{axis.title}{_arrow(axis)}", *_cells(of), f"{of.model.rows} of {of.model.of} rows"])
        for row in rows:
            of = found.rows[row.name]
            yield _line(width, [f"  {row.title}{_arrow(row)}", *_cells(of), _coverage(of.model)])
    for name, figure in found.headlines.items():
        headline = next(each for each in suite.headlines if each.name == name)
        sign = figure.missing if figure.value is None else f"{figure.value:+.1f} %{_interval(figure, '+.1f')}"
        yield f"{headline.title}, relative change: {sign} ({headline.about})"
    if without:
        yield f"no results yet: {', '.join(without)}"
    yield from _reasons(found)


# JSON -----------------------------------------------------------------------------------------------------------------


def _direction(of: Any) -> str:
    return "higher" if of.higher_is_better else "lower"


def _run(run: Run) -> dict[str, Any]:
    return {"name": run.name, "run": dict(run.about), "harness": sorted({each.harness for each in run.results.values()})}


def _compared(of: Compared) -> dict[str, Any]:
    sides = {"model": of.model, "against": of.base, "delta": of.delta}
    return {name: None if figure is None else _figure(figure) for name, figure in sides.items()}


def _figure(figure: Figure) -> dict[str, Any]:
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
    return found


# Text -----------------------------------------------------------------------------------------------------------------


_WIDTH = 26  # of a column of figures


def _short(name: str) -> str:
    """The end of a name, which tells more than the beginning of a path does."""
    return name if len(name) < _WIDTH else f"...{name[5 - _WIDTH :]}"


def _line(width: int, cells: list[str]) -> str:
    first, *others, last = cells
    return (f"{first:<{width}}" + "".join(f"{cell:<{_WIDTH}}" for cell in others) + last).rstrip()


def _arrow(of: Any) -> str:
    return "" if of.higher_is_better else " ↓"


def _cells(of: Compared) -> list[str]:
    cells = [_cell(of.model, ".1f")]
    return cells if of.base is None else [*cells, _cell(of.base, ".1f"), _cell(of.delta, "+.1f")]


def _cell(figure: Figure, form: str) -> str:
    return "-" if figure.value is None else f"{figure.value:{form}}{_interval(figure, form)}"


def _interval(figure: Figure, form: str) -> str:
    return "" if figure.interval is None else " [{:{form}}, {:{form}}]".format(*figure.interval, form=form)


def _coverage(figure: OfRow) -> str:
    return "-" if figure.coverage is None else f"{figure.coverage.scored} of {figure.coverage.expected}"


def _reasons(found: Figures) -> Iterator[str]:
    """Why figures, documents and differences are missing, as far as there are results."""
    for side, run in (("model", found.model), ("base", found.base)):
        rows = [] if run is None else [(name, getattr(of, side)) for name, of in found.rows.items()]
        reasons = {found.suite.table[name].title: of.missing for name, of in rows if of.missing not in (None, NO_RESULTS)}
        yield from _together(f"{run.name}: no figure of" if run else "", reasons)
        lost: dict[str, str] = {}
        for name, of in rows:
            if of.coverage is not None and of.coverage.missing:
                counts = ", ".join(f"{count}: {reason}" for reason, count in of.coverage.missing.items())
                lost[", ".join(task.name for task in found.suite.table[name].tasks)] = counts
        yield from _together(f"{run.name}: documents not scored of" if run else "", lost)
    refused = {
        found.suite.table[name].title: of.delta.missing
        for name, of in found.rows.items()
        if of.delta is not None and of.delta.missing is not None and None not in (of.model.value, of.base.value)
    }
    yield from _together("not compared:", refused)
    mixed = {axis.title: found.axes[axis.name].model for axis in found.suite.axes}
    yield from _together("no mean of", {title: of.missing for title, of in mixed.items() if of.missing and not of.lacking})


def _together(what: str, reasons: Mapping[str, str]) -> Iterator[str]:
    """One line per reason, with all that it is the reason of."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        yield f"{what} {', '.join(names)}: {reason}"
