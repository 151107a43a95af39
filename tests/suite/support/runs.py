"""Runs of a small suite, whose results are made of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mmrlhf_jax.suite.dimensions import Axis, Headline, Suite
from mmrlhf_jax.suite.resampling import Estimate, combined, estimate, figure
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.task import Benchmark, Data, Row, Task, single

DATA = Data("owner/name", None, "test", 4)


def task(name: str, *rows: Row) -> Task:
    return Task(name, name, DATA, rows, "image", "none", 16, {"image": "image"})


def doubled(table: Mapping[str, Estimate], base: Mapping[str, Estimate]) -> Estimate | None:
    if "colours" not in table or "colours" not in base or base["colours"].value == 0:
        return None
    return combined(lambda new, old: new / old, table["colours"], base["colours"])


COLOURS = task("colours", Row("colours", "Colours", ("acc",), "seeing", factor=100.0))
SHAPES = task("shapes", Row("shapes", "Shapes", ("acc",), "seeing", unit="of 5", full=5.0))
LIES = task("lies", Row("lies", "Lies", ("rate",), "seeing", higher_is_better=False))
FIRST = task("first", Row("tales_first", "First", ("score",), "telling", part_of="tales"))
SECOND = task("second", Row("tales_second", "Second", ("score",), "telling", part_of="tales"))

SUITE = Suite(
    "the small suite",
    (single("Colours", COLOURS), single("Shapes", SHAPES), single("Lies", LIES), Benchmark("tales", "Tales", (FIRST, SECOND))),
    {"seeing": "Seeing", "telling": "Telling"},
    (
        Axis("seeing", "Seeing", "seeing"),
        Axis("lying", "Lying", "seeing", higher_is_better=False),
        Axis("telling", "Telling", "telling"),
    ),
    (Headline("twice", "Twice", "The ratio of colours.", "The paper reports 2 %.", ("colours",), doubled, "the base"),),
)


def documents(row: str, values: Sequence[float | None], **options) -> tuple[Document, ...]:
    """A document per value; None stands for one that is missing."""
    return tuple(
        Document(str(n), str(n), f"Question {n}?", (), "A", None, {} if value is None else {row: value}, **options)
        if value is not None
        else Document(str(n), str(n), f"Question {n}?", (), "A", None, {}, missing="the judge failed")
        for n, value in enumerate(values)
    )


def results(of: Task, values: Sequence[float | None], **changes) -> Results:
    """Results of a task with one row, whose figure is the mean of these values."""
    (row,) = of.rows
    there = documents(row.name, values)
    mean = estimate(row, there)
    found = Figure(None, "no document is scored") if mean is None else figure(row, there, mean.value)
    made = Results(of.name, "lmms-eval 0.7.3", {"max_new_tokens": 16}, {row.name: found}, there)
    return dataclasses.replace(made, **changes)
