"""What a model is described by: benchmarks, the table of their rows, and axes, each the mean of some rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

from mmrlhf_jax.suite.resampling import Estimate, combined
from mmrlhf_jax.suite.task import Benchmark, Row, Task

# Figures of rows, by the name of the row.
Figures = Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a suite's table: a row of a task, or the mean of several.

    Attributes:
        name, title: in files, and in tables.
        parts: the rows of tasks that it is the mean of; the others are theirs (`Row`).
    """

    name: str
    title: str
    parts: tuple[Row, ...]

    @property
    def dimension(self) -> str:
        return self.parts[0].dimension

    @property
    def higher_is_better(self) -> bool:
        return self.parts[0].higher_is_better

    @property
    def unit(self) -> str:
        return self.parts[0].unit

    @property
    def full(self) -> float | None:
        return self.parts[0].full


@dataclasses.dataclass(frozen=True)
class Axis:
    """A figure of a dimension: the mean of those of its `rows` that have one direction."""

    name: str
    title: str
    dimension: str
    rows: tuple[TableRow, ...]
    higher_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class Suite:
    """Benchmarks, and how they are shown.

    Attributes:
        name, title: in files, and on pages.
        dimensions: name -> title, in the order in which they are shown.
        benchmarks: whose rows are in the table.
        axes: the means.
    """

    name: str
    title: str
    dimensions: Mapping[str, str]
    benchmarks: tuple[Benchmark, ...]
    axes: tuple[Axis, ...]

    @cached_property
    def table(self) -> Mapping[str, TableRow]:
        return table_rows(self.benchmarks)

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        return {task.name: task for benchmark in self.benchmarks for task in benchmark.tasks}

    def benchmark_of(self, task: str) -> Benchmark:
        return next(each for each in self.benchmarks if any(one.name == task for one in each.tasks))


def table_rows(benchmarks: Sequence[Benchmark]) -> dict[str, TableRow]:
    """The rows of benchmarks by name, in their order; those that are `part_of` another row are in that one."""
    parts: dict[str, list[Row]] = {}
    titles: dict[str, str] = {}
    for benchmark in benchmarks:
        for row in benchmark.rows:
            name = row.part_of or row.name
            parts.setdefault(name, []).append(row)
            titles[name] = row.title if row.part_of is None else benchmark.title
    return {name: TableRow(name, titles[name], tuple(found)) for name, found in parts.items()}


def axis_of(table: Mapping[str, TableRow], name: str, title: str, dimension: str, *, higher_is_better: bool = True) -> Axis:
    """The mean of those rows of a dimension that have this direction and count in a mean."""
    rows = [
        row
        for row in table.values()
        if (row.dimension, row.higher_is_better) == (dimension, higher_is_better) and row.full is not None
    ]
    return Axis(name, title, dimension, tuple(rows), higher_is_better)


def table_of(table: Mapping[str, TableRow], figures: Figures) -> dict[str, Estimate]:
    """The rows of a table from rows of tasks. A row that lacks a part is left out."""
    return {
        name: combined(lambda *parts: sum(parts) / len(parts), *(figures[part.name] for part in row.parts))
        for name, row in table.items()
        if all(part.name in figures for part in row.parts)
    }


def lacking(axis: Axis, table: Figures) -> tuple[str, ...]:
    """The names of the rows in the mean of an axis that a table does not have."""
    return tuple(row.name for row in axis.rows if row.name not in table)


def mean(axis: Axis, table: Figures) -> Estimate | None:
    """The mean of an axis, of 100; None if a row is lacking, since the mean of the others would be another figure."""
    if lacking(axis, table):
        return None
    full = [row.full for row in axis.rows]
    return combined(
        lambda *values: sum(100.0 * value / most for value, most in zip(values, full, strict=True)) / len(full),
        *(table[row.name] for row in axis.rows),
    )
