"""MM-RLHF's suite: ten dimensions, whose means are those of the paper's teaser, and the two figures of its abstract.

The paper prints no rule. The one here gives the teaser's figures of the 7B model to rounding, with a few exceptions
(`published.UNEXPLAINED`): every row counts the same, on a scale of 100 (`Row.full`); of LLaVA-in-the-Wild only the row over all
questions counts; hallucination and safety have two axes, since of some of their rows more is better, and of others less.
"""

from __future__ import annotations

from mmrlhf_jax.suite.catalogue import BENCHMARKS, ROWS, SAFETY
from mmrlhf_jax.suite.dimensions import Axis, Headline, Suite, Table
from mmrlhf_jax.suite.resampling import Estimate, combined
from mmrlhf_jax.suite.task import Row

_TITLES = {
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
_AXES = (
    *(Axis(name, _TITLES[name], name) for name in ("conversation", "general", "chart", "ocr", "real_world", "math")),
    Axis("hallucination_score", "Hallucination, score", "hallucination"),
    Axis("hallucination_rate", "Hallucination, rate", "hallucination", higher_is_better=False),
    *(Axis(name, _TITLES[name], name) for name in ("video", "multi_image", "safety")),
    Axis("unsafety", "Unsafety", "safety", higher_is_better=False),
)
_CONVERSATION_ROWS = tuple(row for row in ROWS.values() if row.dimension == "conversation" and row.full is not None)


def conversation_change(table: Table, base: Table) -> Estimate | None:
    """By how many percent the mean of conversation has grown. None if a row is lacking, or the base's mean is 0."""
    new, old = (MM_RLHF.mean(MM_RLHF.axis("conversation"), each) for each in (table, base))
    return None if new is None or old is None else _relative_change(new, old)


def safety_change(table: Table, base: Table) -> Estimate | None:
    """By how many percent the safety suite has improved: the mean over its 8 tasks. None if a row is lacking, or if a task of
    the base is at 0.

    A rate of which less is better counts as 100 minus the rate, and a task with two metrics as the mean of both.
    """
    if any(row.name not in figures for benchmark in SAFETY for row in benchmark.rows for figures in (table, base)):
        return None
    changes = [_relative_change(_goodness(each.rows, table), _goodness(each.rows, base)) for each in SAFETY]
    if any(each is None for each in changes):
        return None
    return combined(lambda *values: sum(values) / len(values), *changes)


def _goodness(rows: tuple[Row, ...], table: Table) -> Estimate:
    def mean(*values):
        return sum(value if row.higher_is_better else 100.0 - value for row, value in zip(rows, values, strict=True)) / len(
            rows
        )

    return combined(mean, *(table[row.name] for row in rows))


def _relative_change(new: Estimate, old: Estimate) -> Estimate | None:
    """In percent; None if the old value is 0."""
    return None if old.value == 0 else combined(lambda new, old: 100.0 * (new / old - 1.0), new, old)


MM_RLHF = Suite(
    "MM-RLHF's benchmarks",
    BENCHMARKS,
    _TITLES,
    _AXES,
    (
        Headline(
            "conversation_change",
            "Conversation",
            "Relative change of the mean of the four conversation rows.",
            "The paper reports +19.5 %.",
            tuple(row.name for row in _CONVERSATION_ROWS),
            conversation_change,
            "the mean of the base",
        ),
        Headline(
            "safety_change",
            "Safety",
            "Mean over the 8 safety tasks of the relative change, with rates of which less is better counted as 100 minus the"
            " rate.",
            "The paper reports +60 % without a formula; this formula gives +59.7 % on its table 3.",
            tuple(row.name for benchmark in SAFETY for row in benchmark.rows),
            safety_change,
            "a task of the base",
        ),
    ),
)
