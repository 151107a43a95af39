"""VideoRewardBench (arXiv 2509.00484): 1,563 pairs about videos in five dimensions; overall accuracy is over all pairs.

Its data and code could not be read. So the dimension is looked for in several fields, and in the spellings of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrlhf_jax.evaluation.benchmarks.benchmark import OVERALL, Benchmark, Grouping, Published, fits_in
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


_PUBLISHED = Published(
    "Accuracy",
    "VideoRewardBench (arXiv 2509.00484), table 4",
    (*ORDER, OVERALL),
    (
        ("Gemini-2.5-Pro", (0.707, 0.559, 0.655, 0.673, 0.627, 0.636)),
        ("Claude-3.7-Sonnet", (0.650, 0.484, 0.634, 0.583, 0.829, 0.632)),
        ("GPT-4o", (0.633, 0.508, 0.588, 0.579, 0.573, 0.570)),
        ("Qwen2.5-VL-72B", (0.689, 0.484, 0.567, 0.525, 0.447, 0.533)),
        ("LLaVA-Critic-72B", (0.724, 0.438, 0.559, 0.565, 0.880, 0.630)),
        ("LLaVA-Critic-7B", (0.682, 0.465, 0.500, 0.421, 0.775, 0.571)),
        ("UnifiedReward", (0.671, 0.482, 0.504, 0.453, 0.712, 0.566)),
        ("R1-Reward", (0.360, 0.400, 0.378, 0.306, 0.479, 0.390)),
        ("Skywork-VL-Reward", (0.657, 0.492, 0.529, 0.540, 0.801, 0.605)),
        ("IXC-2.5-Reward", (0.735, 0.513, 0.563, 0.522, 0.387, 0.534)),
        ("MM-RLHF-Reward", (0.594, 0.370, 0.441, 0.522, 0.652, 0.512)),
    ),
    "Taken from notes on the paper; the overall figure of every row is the mean of its groups weighted by their pairs.",
)

BENCHMARK = Benchmark(
    name="videorewardbench",
    title="VideoRewardBench",
    matches=matches,
    groupings={"official": Grouping(lambda record: (dimension(record) or "other",), PAIRS, "the dimensions of the paper")},
    total=TOTAL,
    order=ORDER,
    published=(_PUBLISHED,),
)
