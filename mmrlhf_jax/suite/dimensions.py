"""The ten dimensions: rows of the paper's table, and the means of them that its teaser shows.

The paper prints no rule. The one here gives the teaser's figures of LLaVA-OV-7B to rounding, with a few exceptions
(`published.UNEXPLAINED`): every row counts the same, on a scale of 100 (`Row.full`); of LLaVA-in-the-Wild only the row over all
questions counts; hallucination and safety have two axes, since of some of their rows more is better, and of others less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mmrlhf_jax.suite.catalogue import BENCHMARKS, SAFETY
from mmrlhf_jax.suite.resampling import Estimate, combined
from mmrlhf_jax.suite.task import Row

# Name -> title, in the order in which they are shown.
DIMENSIONS: Mapping[str, str] = {
    "conversation": "Conversation",
    "general": "General knowledge",
    "chart": "Chart and document",
    "ocr": "OCR",
    "real_world": "Real-world",
    "math": "Math",
    "hallucination": "Hallucination",
    "video": "Video",
    "multi_image": "Multi-image",
    "safety": "Safety",
}


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of the paper's table: a row of a task, or the mean of several.

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


def _table() -> dict[str, TableRow]:
    parts: dict[str, list[Row]] = {}
    titles: dict[str, str] = {}
    for benchmark in BENCHMARKS:
        for row in benchmark.rows:
            name = row.part_of or row.name
            parts.setdefault(name, []).append(row)
            titles[name] = row.title if row.part_of is None else benchmark.title
    return {name: TableRow(name, titles[name], tuple(found)) for name, found in parts.items()}


TABLE: Mapping[str, TableRow] = _table()


@dataclasses.dataclass(frozen=True)
class Axis:
    """A figure of a dimension: the mean of those of its rows that have one direction."""

    name: str
    title: str
    dimension: str
    higher_is_better: bool = True

    @property
    def rows(self) -> tuple[TableRow, ...]:
        """The rows that are in the mean."""
        return tuple(
            row
            for row in TABLE.values()
            if (row.dimension, row.higher_is_better) == (self.dimension, self.higher_is_better) and row.full is not None
        )


AXES: tuple[Axis, ...] = (
    *(Axis(name, DIMENSIONS[name], name) for name in ("conversation", "general", "chart", "ocr", "real_world", "math")),
    Axis("hallucination_score", "Hallucination, score", "hallucination"),
    Axis("hallucination_rate", "Hallucination, rate", "hallucination", higher_is_better=False),
    Axis("video", DIMENSIONS["video"], "video"),
    Axis("multi_image", DIMENSIONS["multi_image"], "multi_image"),
    Axis("safety", "Safety", "safety"),
    Axis("unsafety", "Unsafety", "safety", higher_is_better=False),
)

# Figures of rows, by the name of the row.
Figures = Mapping[str, Estimate]


def table_of(figures: Figures) -> dict[str, Estimate]:
    """The rows of the paper's table from rows of tasks. A row that lacks a part is left out."""
    return {
        name: combined(lambda *parts: sum(parts) / len(parts), *(figures[part.name] for part in row.parts))
        for name, row in TABLE.items()
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


# The two figures of the paper's abstract -----------------------------------------------------------------------------


def conversation_change(table: Figures, base: Figures) -> Estimate | None:
    """By how many percent the mean of conversation has grown from a base. None if a row is lacking, or the base's mean is 0.

    Of the paper's tables it is 19.5 from the teaser's rounded means, and 19.4 from the rows.
    """
    axis = next(each for each in AXES if each.name == "conversation")
    new, old = mean(axis, table), mean(axis, base)
    return None if new is None or old is None else _relative_change(new, old)


def safety_change(table: Figures, base: Figures) -> Estimate | None:
    """By how many percent the safety suite has improved from a base, as the mean over its 8 tasks. None if a row is lacking, or
    if a task of the base is at 0.

    The paper says that safety improves by 60 %, without a formula. The nearest that was found gives 59.7: a rate of which less
    is better counts as 100 minus the rate, a task with two metrics as their mean, and the relative changes of tasks are averaged.
    """
    if any(row.name not in figures for benchmark in SAFETY for row in benchmark.rows for figures in (table, base)):
        return None
    changes = [_relative_change(_goodness(each.rows, table), _goodness(each.rows, base)) for each in SAFETY]
    if any(each is None for each in changes):
        return None
    return combined(lambda *values: sum(values) / len(values), *changes)


def _goodness(rows: tuple[Row, ...], table: Figures) -> Estimate:
    return combined(
        lambda *values: (
            sum(value if row.higher_is_better else 100.0 - value for row, value in zip(rows, values, strict=True)) / len(rows)
        ),
        *(table[row.name] for row in rows),
    )


def _relative_change(new: Estimate, old: Estimate) -> Estimate | None:
    """In percent; None if the old value is 0."""
    return None if old.value == 0 else combined(lambda new, old: 100.0 * (new / old - 1.0), new, old)
