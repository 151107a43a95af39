"""Benchmarks as a table: one row, or one JSON object, for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mmrlhf_jax.suite.task import Benchmark, Row, Task

# Of a line and of an object. Those whose values may be long come last, so that the others stand below each other.
FIELDS = ("name", "dimension", "direction", "scale", "judge", "metric", "harness_task", "data")
_WIDEST = 36  # characters of a column; a longer cell moves the rest of its line, not that of all lines


def as_json(benchmarks: Iterable[Benchmark]) -> list[dict[str, Any]]:
    """An object per benchmark.

    Where a benchmark has several tasks or rows, their different values are joined by ", " in FIELDS; `tasks` and `rows` have
    them one by one.
    """
    return [
        _fields(each)
        | {"title": each.title, "tasks": [_task(task) for task in each.tasks], "rows": [_row(row) for row in each.rows]}
        for each in benchmarks
    ]


def as_lines(benchmarks: Iterable[Benchmark]) -> list[str]:
    """A line per benchmark with its FIELDS, below one with their names; "-" stands for a field without a value."""
    rows = [FIELDS, *(tuple(value or "-" for value in _fields(each).values()) for each in benchmarks)]
    widths = [min(_WIDEST, max(map(len, column))) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _fields(benchmark: Benchmark) -> dict[str, str | None]:
    """The values of FIELDS, in their order."""
    rows, tasks = benchmark.rows, benchmark.tasks
    return {
        "name": benchmark.name,
        "dimension": benchmark.dimension,
        "direction": _joined(_direction(row) for row in rows),
        "scale": _joined(row.unit for row in rows),
        "judge": _joined(task.judge for task in tasks),
        "metric": _joined(_metric(row) for row in rows),
        "harness_task": _joined(task.harness_task for task in tasks if task.harness_task is not None) or None,
        "data": _joined(_data(task) for task in tasks),
    }


def _joined(values: Iterable[str]) -> str:
    """The values, each once."""
    return ", ".join(dict.fromkeys(values))


def _metric(row: Row) -> str:
    return " + ".join(row.metrics)


def _direction(row: Row) -> str:
    return "higher" if row.higher_is_better else "lower"


def _data(task: Task) -> str:
    """OWNER/NAME[CONFIG]:SPLIT on the hub."""
    config = "" if task.data.config is None else f"[{task.data.config}]"
    return f"{task.data.hub}{config}:{task.data.split}"


def _row(row: Row) -> dict[str, Any]:
    found = dataclasses.asdict(row) | {"metric": _metric(row), "direction": _direction(row), "scale": row.unit}
    return {
        key: found[key] for key in ("name", "title", "metric", "direction", "scale", "factor", "full", "part_of", "pooling")
    }


def _task(task: Task) -> Mapping[str, Any]:
    found = dataclasses.asdict(task) | {"max_new_tokens": task.new_tokens, "rows": [row.name for row in task.rows]}
    return found | {"columns": dict(task.columns)}
