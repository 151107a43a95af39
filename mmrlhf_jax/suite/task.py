"""What there is to know about a benchmark of a policy: its tasks, their data, and the rows of the table that they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

# Which documents of a task need a judge: none, all, or those whose answer a rule cannot parse.
Judge = Literal["none", "unparsable", "always"]
Media = Literal["image", "images", "video"]
# How a figure is made of the values of documents: their mean, or the mean or the sum of the categories' means. Means are
# weighted by the documents' weights. Without a score in one of the data set's categories there is no figure over categories.
Pooling = Literal["mean", "mean of groups", "sum of groups"]

# The limit for tasks for which the harness states none: that of its class for the model that the paper used.
UNSTATED_NEW_TOKENS = 1024


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure that a task gives.

    Attributes:
        name, title: in files, and in tables. Names are unique in the catalogue.
        metrics: keys of the harness's results, whose sum is the figure; `KEY,FILTER` where a filter is not the harness's
            "none".
        dimension: the name of one of the suite's dimensions (`dimensions.Suite`).
        higher_is_better: the direction.
        factor: a figure of the harness times this is a figure on the paper's scale, as in the files of results.
        unit: of the paper's scale: "%", "points", "of 5", "of 6".
        full: the figure that counts as 100 in the mean of its axis. None: the row is shown, and is in no mean.
        part_of: the row of the paper's table of which this is a part; it is the mean of its parts. None: the row itself.
        pooling: how the figure is made of the documents' values, with which it is computed again for intervals, and for the
            documents that two models have in common.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    dimension: str
    higher_is_better: bool = True
    factor: float = 1.0
    unit: str = "%"
    full: float | None = 100.0
    part_of: str | None = None
    pooling: Pooling = "mean"

    def scaled(self, value: float) -> float:
        """A figure of the harness on the paper's scale."""
        return self.factor * value


@dataclasses.dataclass(frozen=True)
class Data:
    """Where a task's documents are.

    Attributes:
        hub, config, split: of a data set on the hub; config None: it has only one.
        documents: about how many there are.
        size: about how many bytes are downloaded for them, with media and with the other splits of the same config; None where
            that is not known.
        files: the files that documents name, relative to HF_HOME, with a column of the document in braces.
    """

    hub: str
    config: str | None
    split: str
    documents: int | None = None
    size: int | None = None
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """What is run in one process, on one data set, and leaves one file of results.

    Attributes:
        name: of its files; that of the harness's task, where it has one. Names are unique in the catalogue.
        harness_task: the task of lmms-eval that makes prompts of documents, and metrics of answers where `own_metrics` is
            false; None if it has none.
        data: the documents.
        rows: the figures.
        media: what a document has.
        judge: which answers a judge has to read.
        max_new_tokens: the limit of an answer as the harness states it; None if it states none.
        columns: column of a document -> what it holds.
        own_metrics: whether the answers are scored here, because the harness does not have the task or scores it wrongly.
        judge_calls: how often the judge is called for a document whose answer it has to read.
    """

    name: str
    harness_task: str | None
    data: Data
    rows: tuple[Row, ...]
    media: Media
    judge: Judge
    max_new_tokens: int | None
    columns: Mapping[str, str]
    own_metrics: bool = False
    judge_calls: float = 1.0

    @property
    def new_tokens(self) -> int:
        """The limit of an answer: what the harness states, or else `UNSTATED_NEW_TOKENS`."""
        return UNSTATED_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One of the 27 benchmarks, or of the 8 tasks of the safety suite: a single task of its name, or several that are read
    together."""

    name: str
    title: str
    tasks: tuple[Task, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all its tasks."""
        return tuple(row for task in self.tasks for row in task.rows)

    @property
    def dimension(self) -> str:
        return self.rows[0].dimension


def single(title: str, task: Task) -> Benchmark:
    """A benchmark that is one task, of the same name."""
    return Benchmark(task.name, title, (task,))


class TaskFailed(Exception):
    """A task cannot be run, which ends no other one. The message is the reason, in one line."""


GO_ON = "; the other tasks go on"  # ends the line that says why a task failed, where others come behind it
