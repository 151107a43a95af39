"""What is irregular in the harness's metrics, by the names that it gives them (lmms-eval 0.7.3, `tasks/*/utils.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Columns = Mapping[str, Any]  # of a document

# MMBench's index of a question whose options stand in another order is that of the question, and a multiple of this.
_ROTATION = 1_000_000


@dataclasses.dataclass(frozen=True)
class Together:
    """Documents of a task that are scored together.

    Attributes:
        columns: those that `key`, `is_complete` and `has_value` read.
        key: what the documents of a group have in common.
        is_complete: whether these documents, all of a group that there are, can be scored.
        has_value: whether a document counts in the figure; the group does once for each that does.
        judged: whether the harness calls its judge about a group, in an aggregation.
        value: what is noted of a group's documents, and the names of the aggregation's module -> the group's value; None: the
            figure over the group.
    """

    columns: Sequence[str]
    key: Callable[[Columns], Any]
    is_complete: Callable[[Sequence[Columns]], bool]
    has_value: Callable[[Columns], bool] = lambda row: True
    judged: bool = False
    value: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], float] | None = None


def _hit(noted: Sequence[Mapping[str, Any]], module: Mapping[str, Any]) -> float:
    """By the function that MMBench's aggregation calls for each question, since the aggregation itself takes long."""
    import pandas  # which only the harness needs

    orders = sorted(noted, key=lambda each: each["index"])
    right = {each["index"]: each["answer"] for each in orders}
    return 100.0 * module["mmbench_evaluator"].eval_sub_data(pandas.DataFrame(orders), right)


# Tasks whose documents are scored in groups.
TOGETHER: Mapping[str, Together] = {
    # Two questions about a picture; the harness ends with an AssertionError where there are not two.
    "mme": Together(
        ("category", "question_id"),
        key=lambda row: (row["category"], row["question_id"]),
        is_complete=lambda rows: len(rows) == 2,
    ),
    # One question with its options in several orders: a hit if all are right. The figure is a mean over questions.
    "mmbench_cn_dev": Together(
        ("index",),
        key=lambda row: row["index"] % _ROTATION,
        is_complete=lambda rows: any(row["index"] < _ROTATION for row in rows),
        has_value=lambda row: row["index"] < _ROTATION,
        judged=True,
        value=_hit,
    ),
    # One question that is asked in two ways. A video with one of them is in no figure, and without any the figure would be 0.
    "videochatgpt_consistency": Together(
        ("video_name",),
        key=lambda row: row["video_name"],
        is_complete=lambda rows: len(rows) % 2 == 0,
        judged=True,
    ),
}

# Errors that an answer causes in a task's metric: such an answer is scored as an empty one, which these metrics give 0. (Rouge
# finds no sentence in an answer of nothing but dots.)
SCORED_AS_EMPTY: Mapping[str, tuple[type[Exception], str]] = {
    "llava_interleave_bench_in_domain": (ValueError, "Hypothesis is empty."),
}


def is_caused_by_the_answer(task: str, error: BaseException) -> bool:
    """Whether the answer alone is why a task's metric has failed."""
    kind, text = SCORED_AS_EMPTY.get(task, (None, None))
    return kind is not None and type(error) is kind and str(error) == text


# Metrics of which 0 is given as None (mathvista).
ZERO_IS_NONE = {"llm_as_judge_eval"}

# Metrics that are divided by this number, however many documents were scored, so that the others would count as wrong.
DIVIDED_BY: Mapping[str, int] = {"ocrbench_accuracy": 1000}

_WINS = {"model_b": 100.0, "tie": 50.0, "model_a": 0.0}

# What a document's own value is, where the aggregation over it alone says nothing of it, or takes long.
OWN_VALUES: Mapping[str, Callable[[Any], float]] = {
    "elo_scores": lambda noted: _WINS[noted["winner"]],  # a rating that is fitted to all battles
    "ocrbench_accuracy": lambda noted: noted["score"],  # writes a file
    "videomme_perception_score": lambda noted: 100.0 * (noted["pred_answer"] == noted["answer"]),  # fills 6480 categories
}


def _one_winner(noted: Sequence[Any]) -> bool:
    return len({each["winner"] for each in noted}) == 1


# Metrics that cannot be computed of some notes, for which the harness gives a figure that has nothing to do with them: the mean
# of the documents' own values is the figure then. (No rating can be fitted where one model wins every battle, and the harness
# gives both the same one, which is 50 %.)
NOT_DEFINED: Mapping[str, Callable[[Sequence[Any]], bool]] = {"elo_scores": _one_winner}

# The weight of a document's value: a share of the sum of the other model's scores.
WEIGHTS: Mapping[str, Callable[[Any], float]] = {
    metric: lambda noted: noted["scores"][0]
    for metric in ("gpt_eval_llava_all", "gpt_eval_llava_conv", "gpt_eval_llava_detail", "gpt_eval_llava_complex")
}


def _list_of(sub_task: str, module: Mapping[str, Any]) -> str | None:
    """The name of the list of sub-tasks that has this one."""
    return next((name for name, each in module.items() if isinstance(each, list) and sub_task in each), None)


@dataclasses.dataclass(frozen=True)
class Categories:
    """The categories over which a metric is a mean or a sum.

    Attributes:
        column: of a document.
        of: what the column holds, and the names of the aggregation's module -> the category; None: of none.
    """

    column: str
    of: Callable[[str, Mapping[str, Any]], str | None] = lambda name, module: name


CATEGORIES: Mapping[str, Categories] = {
    "mme_perception_score": Categories("category"),
    "mme_cognition_score": Categories("category"),
    "average": Categories("l2_category"),
    "overall_score": Categories("sub_task", _list_of),
}


def counts(noted: Any) -> bool:
    """Whether a document counts for a metric (llava_in_the_wild marks those of other categories)."""
    return not (isinstance(noted, Mapping) and isinstance(noted.get("scores"), Sequence) and -999 in noted["scores"])
