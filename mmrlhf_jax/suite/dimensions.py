"""The ten dimensions: rows of the paper's table, and the means of them that its teaser shows.

The paper prints no rule. The one here gives the teaser's figures of LLaVA-OV-7B to rounding, with a few exceptions
(`published.UNEXPLAINED`): every row counts the same, on a scale of 100 (`Row.full`); of LLaVA-in-the-Wild only the row over all
questions counts; hallucination and safety have two axes, since of some of their rows more is better, and of others less.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from mmrlhf_jax.suite.catalogue import BENCHMARKS, SAFETY
from mmrlhf_jax.suite.resampling import Estimate, combined
from mmrlhf_jax.suite.suite import Axis, Figures, Suite, TableRow, axis_of, mean, table_rows
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


TABLE: Mapping[str, TableRow] = table_rows(BENCHMARKS)

_axis = partial(axis_of, TABLE)

AXES: tuple[Axis, ...] = (
    *(_axis(name, DIMENSIONS[name], name) for name in ("conversation", "general", "chart", "ocr", "real_world", "math")),
    _axis("hallucination_score", "Hallucination, score", "hallucination"),
    _axis("hallucination_rate", "Hallucination, rate", "hallucination", higher_is_better=False),
    _axis("video", DIMENSIONS["video"], "video"),
    _axis("multi_image", DIMENSIONS["multi_image"], "multi_image"),
    _axis("safety", "Safety", "safety"),
    _axis("unsafety", "Unsafety", "safety", higher_is_better=False),
)

SUITE = Suite("mm-rlhf", "MM-RLHF's benchmarks", DIMENSIONS, BENCHMARKS, AXES)


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
    is better counts as 100 minus the rate, a task with two metrics as their mean, and the tasks' relative changes are averaged.
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
