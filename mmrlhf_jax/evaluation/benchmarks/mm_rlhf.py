"""MM-RLHF-RewardBench: 170 pairs of 46 prompts in five categories, which are folders of the media.

References: MM-RLHF `llava/eval/cal_performance_mmreweard_bench.py` (a pair is right if the chosen response scores strictly
higher; ACC+ counts the ids whose pairs are all right; the category is the first of the five that occurs in the media's path)
and the paper, arXiv 2502.10391, table 4. The counts are those of the file `mm_reward_bench.jsonl` in yfzhang114/r1_reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from mmrlhf_jax.evaluation.benchmarks.benchmark import OVERALL, Benchmark, Grouping, Published, fits_in
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


_ACC = Published(
    "ACC",
    "MM-RLHF (arXiv 2502.10391), table 4",
    (*CATEGORIES, OVERALL),
    (
        ("LLaVA-OV-7B", (0.14, 0.11, 0.29, 0.41, 0.32, 0.24)),
        ("LLaVA-Critic (pointwise)", (0.38, 0.49, 0.38, 0.62, 0.40, 0.45)),
        ("LLaVA-Critic (pairwise)", (0.23, 0.54, 0.24, 0.28, 0.52, 0.35)),
        ("GPT-4o", (0.69, 0.95, 0.56, 0.72, 0.80, 0.74)),
        ("MM-RLHF-Reward without critiques", (0.90, 0.70, 0.79, 0.69, 0.70, 0.75)),
        ("MM-RLHF-Reward without enhanced critiques", (0.83, 0.92, 0.68, 0.69, 0.80, 0.79)),
        ("MM-RLHF-Reward", (0.93, 1.0, 0.71, 0.66, 0.92, 0.85)),
        ("MM-RLHF-Reward, given critiques", (1.0, 1.0, 1.0, 0.69, 0.92, 0.93)),
    ),
    "The released script scores the whole picture only, without the tiles of its high resolution, and of a video the first"
    " frame. The groups of the row without critiques give 0.765 over all pairs, not the 0.75 that is printed.",
)
_ACC_PLUS = Published(
    "ACC+",
    "MM-RLHF (arXiv 2502.10391), table 4",
    (*CATEGORIES, OVERALL),
    (
        ("LLaVA-OV-7B", (0.0, 0.0, 0.20, 0.0, 0.10, 0.07)),
        ("LLaVA-Critic (pointwise)", (0.10, 0.20, 0.20, 0.17, 0.20, 0.17)),
        ("LLaVA-Critic (pairwise)", (0.0, 0.30, 0.10, 0.17, 0.20, 0.15)),
        ("GPT-4o", (0.20, 0.90, 0.40, 0.33, 0.60, 0.50)),
        ("MM-RLHF-Reward without critiques", (0.80, 0.40, 0.60, 0.33, 0.60, 0.50)),
        ("MM-RLHF-Reward without enhanced critiques", (0.70, 0.80, 0.40, 0.17, 0.60, 0.57)),
        ("MM-RLHF-Reward", (0.70, 1.0, 0.50, 0.17, 0.80, 0.67)),
        ("MM-RLHF-Reward, given critiques", (1.0, 1.0, 1.0, 0.17, 0.90, 0.87)),
    ),
    "The groups of the row without critiques give 0.565 over all prompts, not the 0.50 that is printed.",
    metric="acc_plus",
)

BENCHMARK = Benchmark(
    name="mm-rlhf",
    title="MM-RLHF-RewardBench",
    matches=matches,
    groupings={"official": Grouping(groups, PAIRS, "folders of the media")},
    total=TOTAL,
    order=CATEGORIES,
    published=(_ACC, _ACC_PLUS),
)
