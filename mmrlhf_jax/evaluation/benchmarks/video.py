"""VideoRewardBench (arXiv 2509.00484): 1,563 pairs about videos in five dimensions; overall accuracy is over all pairs.

Its data and code could not be read. So the dimension is looked for in several fields, and in the spellings of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Grouping, fits_in
from mmrlhf_jax.evaluation.benchmarks.published import published
from mmrlhf_jax.records import RankedRecord

LONG, SHORT, KNOWLEDGE, REASONING, SAFETY = ORDER = (
    *("long-form perception", "short-form perception"),
    *("knowledge", "reasoning", "safety"),
)
PAIRS = {LONG: 283, SHORT: 413, KNOWLEDGE: 238, REASONING: 278, SAFETY: 351}
TOTAL = sum(PAIRS.values())
FIELDS = ("dimension", "aspect", "category", "subset", "task", "task_type", "type")


def dimension(record: RankedRecord) -> str | None:
    """The dimension that one of FIELDS names; None if none does."""
    names = [record.extra.get(field) for field in FIELDS]
    return next(filter(None, map(_dimension_of, filter(lambda name: isinstance(name, str), names))), None)


def _dimension_of(name: str) -> str | None:
    words = set(re.findall("[a-z]+", name.lower()))
    if "perception" in words:
        return LONG if "long" in words else SHORT if "short" in words else None
    return next((plain for plain in (KNOWLEDGE, REASONING, SAFETY) if words == {plain}), None)


def matches(records: Sequence[RankedRecord]) -> bool:
    """Whether every record has a video and a dimension, and perception, which other data do not part so, is among them."""
    found = [dimension(record) if record.video is not None else None for record in records]
    return None not in found and bool({LONG, SHORT} & set(found)) and fits_in(records, TOTAL)


BENCHMARK = Benchmark(
    name="videorewardbench",
    title="VideoRewardBench",
    matches=matches,
    groupings={"official": Grouping(lambda record: (dimension(record) or "other",), PAIRS, "the dimensions of the paper")},
    total=TOTAL,
    order=ORDER,
    published=published("videorewardbench"),
)
