"""Suites: benchmarks whose rows are put together to dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property

from mmrlhf_jax.suite.resampling import Estimate, combined
from mmrlhf_jax.suite.task import Benchmark, Row, Task


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a suite's table: a row of a task, or the mean of several.

    Attributes:
        name, title: in files, and in tables.
        parts: the rows of tasks that it is the mean of; dimension, direction, unit and `full` are theirs (`Row`).
        tasks: the tasks of its parts, each once.
    """

    name: str
    title: str
    parts: tuple[Row, ...]
    tasks: tuple[Task, ...]

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
    """A figure of a dimension: the mean of those of its rows that have one direction."""

    name: str
    title: str
    dimension: str
    higher_is_better: bool = True


# Figures of rows, by the names of the rows.
Table = Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Headline:
    """A key figure of a comparison.

    Attributes:
        name, title: in files, and in tables.
        about: how it is computed, as a sentence.
        published: what the paper reports, as a sentence.
        rows: the names of the rows that it is computed from.
        change: computes it from the tables of a model and of its base, in percent; None if a row is missing, or if the base has
            a 0 by which it would be divided.
        divisor: what it is that is 0 then, in words.
    """

    name: str
    title: str
    about: str
    published: str
    rows: tuple[str, ...]
    change: Callable[[Table, Table], Estimate | None]
    divisor: str


@dataclasses.dataclass(frozen=True)
class Suite:
    """Benchmarks, and how their rows are put together.

    Attributes:
        title: in texts.
        benchmarks: in the order of the table.
        dimensions: name -> title.
        axes: the figures of the dimensions; those of which more is better, and less, are apart.
        headlines: key figures of comparisons.
    """

    title: str
    benchmarks: tuple[Benchmark, ...]
    dimensions: Mapping[str, str]
    axes: tuple[Axis, ...]
    headlines: tuple[Headline, ...] = ()

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """All tasks by name."""
        return {task.name: task for benchmark in self.benchmarks for task in benchmark.tasks}

    @cached_property
    def table(self) -> Mapping[str, TableRow]:
        """The rows of the table by name."""
        parts: dict[str, list[tuple[Row, Task, str]]] = {}
        for benchmark in self.benchmarks:
            for task in benchmark.tasks:
                for row in task.rows:
                    title = row.title if row.part_of is None else benchmark.title
                    parts.setdefault(row.part_of or row.name, []).append((row, task, title))
        return {
            name: TableRow(
                name,
                found[0][2],
                tuple(row for row, _, _ in found),
                tuple({task.name: task for _, task, _ in found}.values()),
            )
            for name, found in parts.items()
        }

    def axis(self, name: str) -> Axis:
        return next(axis for axis in self.axes if axis.name == name)

    def rows(self, axis: Axis) -> tuple[TableRow, ...]:
        """The rows in the mean of an axis."""
        key = (axis.dimension, axis.higher_is_better)
        return tuple(
            row for row in self.table.values() if (row.dimension, row.higher_is_better) == key and row.full is not None
        )

    def whole(self, parts: Table) -> dict[str, Estimate]:
        """The rows of the table from rows of tasks. A row of the table that lacks a part is left out."""
        return {
            name: combined(lambda *values: sum(values) / len(values), *(parts[part.name] for part in row.parts))
            for name, row in self.table.items()
            if all(part.name in parts for part in row.parts)
        }

    def lacking(self, axis: Axis, table: Table) -> tuple[str, ...]:
        """The names of the rows in the mean of an axis that a table does not have."""
        return tuple(row.name for row in self.rows(axis) if row.name not in table)

    def mean(self, axis: Axis, table: Table) -> Estimate | None:
        """The mean of an axis, of 100; None if a row is lacking, since the mean of the others would be another figure."""
        if self.lacking(axis, table):
            return None
        rows = self.rows(axis)
        return combined(
            lambda *values: sum(100.0 * value / row.full for row, value in zip(rows, values, strict=True)) / len(rows),
            *(table[row.name] for row in rows),
        )
