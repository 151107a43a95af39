"""Benchmarks as a table: one row, or one JSON object, for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mmrlhf_jax.suite.downloads import downloads, size_of
from mmrlhf_jax.suite.task import Benchmark, Row, Task

_COLUMNS = ("name", "title", "dimension", "documents", "size", "judge")
_NUMBERS = ("documents", "size")  # which stand at the right of their columns
_WIDEST = 36  # characters of a column; a longer cell moves the rest of its line, not that of all lines


def as_json(benchmarks: Iterable[Benchmark]) -> list[dict[str, Any]]:
    """An object per benchmark.

    Where a benchmark has several tasks or rows, their values are joined by ", " in the first eight fields; `tasks` and `rows`
    have them one by one.
    """
    return [
        _fields(each)
        | {"title": each.title, "tasks": [_task(task) for task in each.tasks], "rows": [_row(row) for row in each.rows]}
        for each in benchmarks
    ]


def as_lines(benchmarks: Iterable[Benchmark]) -> list[str]:
    """A line per benchmark, below one with the names of the columns."""
    rows = [_COLUMNS, *map(_cells, benchmarks)]
    widths = [min(_WIDEST, max(map(len, column))) for column in zip(*rows, strict=True)]
    return ["  ".join(map(_aligned, _COLUMNS, row, widths)).rstrip() for row in rows]


def _aligned(column: str, cell: str, width: int) -> str:
    return cell.rjust(width) if column in _NUMBERS else cell.ljust(width)


def _cells(benchmark: Benchmark) -> tuple[str, ...]:
    documents = [task.data.documents for task in benchmark.tasks]
    sizes = [each.size for each in downloads(benchmark.tasks)]
    return (
        benchmark.name,
        benchmark.title,
        benchmark.dimension,
        "?" if None in documents else f"{sum(documents):,}",
        "?" if None in sizes else size_of(sum(sizes)),
        _joined(task.judge for task in benchmark.tasks),
    )


def _fields(benchmark: Benchmark) -> dict[str, str | None]:
    rows, tasks = benchmark.rows, benchmark.tasks
    return {
        "name": benchmark.name,
        "dimension": benchmark.dimension,
        "metric": _joined(_metric(row) for row in rows),
        "direction": _joined(_direction(row) for row in rows),
        "scale": _joined(row.unit for row in rows),
        "harness_task": _joined(task.harness_task for task in tasks if task.harness_task is not None) or None,
        "data": _joined(_data(task) for task in tasks),
        "judge": _joined(task.judge for task in tasks),
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
