"""What a grader is: the questions that it asks a judge about an answer, and the values that it makes of the replies."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.suite.judges.question import Question

# "corrected": as the benchmarks define their metrics. "paper": as the code does that made the paper's tables, defects included.
Mode = Literal["corrected", "paper"]
MODES: tuple[Mode, ...] = ("corrected", "paper")

Columns = Mapping[str, Any]  # a document: column -> value


@dataclasses.dataclass(frozen=True)
class Graded:
    """What an answer gives, by the names of metrics (`Row.metrics` of the catalogue).

    `values` are in the metric's own unit; a figure is the mean of the values, weighted with `weights` where these are not 1.
    A value is None where the answer has none, because its weight is 0.
    """

    values: Mapping[str, float | None]
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Grader(abc.ABC):
    """Grades the answers of a task, in one of the modes.

    Attributes:
        metrics: the names of what it gives.
        attacks: whether its judge decides about attacks, for which there are classifiers.
        reference: the column with a right answer; None: there is none.
    """

    metrics: ClassVar[tuple[str, ...]]
    attacks: ClassVar[bool] = False
    reference: ClassVar[str | None] = None

    def __init__(self, mode: Mode = "corrected"):
        self.mode = mode

    @property
    def corrected(self) -> bool:
        return self.mode == "corrected"

    @abc.abstractmethod
    def check(self, row: Columns, where: str) -> None:
        """UserError, which begins with `where` (file and document), for columns that the grader cannot use."""

    def prompt(self, row: Columns) -> str:
        """What the policy is asked."""
        return row["question"]

    def questions(self, document: str, row: Columns, answer: str) -> tuple[Question, ...]:
        """What the judge is asked about an answer; nothing where a rule decides."""
        return ()

    @abc.abstractmethod
    def grade(self, row: Columns, answer: str, replies: Sequence[str]) -> Graded:
        """The values, of the replies to the questions. NotJudged for a reply that cannot be read."""


def check_text(row: Columns, column: str, where: str) -> str:
    """The text of a column. UserError if it holds something else."""
    if not isinstance(row.get(column), str):
        raise UserError(f"{where}: column {column!r} must hold a text, found {shown(row.get(column))}")
    return row[column]


def check_texts(row: Columns, column: str, where: str) -> list[str]:
    """The texts of a column with lists. UserError if it holds something else."""
    found = row.get(column)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UserError(f"{where}: column {column!r} must hold a list of texts, found {shown(found)}")
    return found
