"""MM-RLHF-RewardBench: 170 pairs of 46 prompts in five categories, which are folders of the media.

References: MM-RLHF `llava/eval/cal_performance_mmreweard_bench.py` (a pair is right if the chosen response scores strictly
higher; ACC+ counts the ids whose pairs are all right; the category is the first of the five that occurs in the media's path)
and the paper, arXiv 2502.10391, table 4. The counts are those of the file `mm_reward_bench.jsonl` in yfzhang114/r1_reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Grouping, fits_in
from mmrlhf_jax.evaluation.benchmarks.published import published
from mmrlhf_jax.records import RankedRecord

CATEGORIES = ("mcq", "long", "short", "safety", "video")
PAIRS = {"mcq": 42, "long": 37, "short": 34, "safety": 32, "video": 25}
TOTAL = sum(PAIRS.values())


def path_category(record: RankedRecord) -> str | None:
    """The first of the five categories that occurs in a media path; None if none does."""
    path = " ".join([*record.images, record.video or ""])
    return next((name for name in CATEGORIES if name in path), None)


def groups(record: RankedRecord) -> tuple[str, ...]:
    stored = record.extra.get("category")  # of a record whose media were exchanged
    return (stored if stored in CATEGORIES else path_category(record) or "other",)


def matches(records: Sequence[RankedRecord]) -> bool:
    """Whether every record's media lie in a folder that is named after a category, no record has a category of its own, and
    there are not too many: MM-RLHF's training data lie in such folders, too."""
    are_like = bool(records) and all("category" not in record.extra and folder_category(record) for record in records)
    return are_like and fits_in(records, TOTAL)


def folder_category(record: RankedRecord) -> str | None:
    """The first of the five categories that is a folder of all media; None if there is none."""
    folders = [PurePosixPath(path).parts[:-1] for path in (*record.images, *filter(None, [record.video]))]
    return next((name for name in CATEGORIES if folders and all(name in each for each in folders)), None)


BENCHMARK = Benchmark(
    name="mm-rlhf",
    title="MM-RLHF-RewardBench",
    matches=matches,
    groupings={"official": Grouping(groups, PAIRS, "folders of the media")},
    total=TOTAL,
    order=CATEGORIES,
    published=published("mm-rlhf"),
)
