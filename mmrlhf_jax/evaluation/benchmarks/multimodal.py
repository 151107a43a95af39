"""Multimodal RewardBench: 4,711 released pairs in six categories, two of which have two parts.

References: facebookresearch/multimodal_rewardbench `scripts/2_get_accuracy.py` (accuracy per category and over all pairs; the
beginning of an id parts safety into bias and toxicity, and reasoning into math and coding) and its README (leaderboard). The
paper has 500 pairs more, of Hateful Memes, which cannot be released.
"""

from __future__ import annotations

from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Grouping, all_say, same_id_and_text
from mmrlhf_jax.evaluation.benchmarks.published import published
from mmrlhf_jax.records import RankedRecord

TITLE = "Multimodal-RewardBench"
# Names of categories in the data -> their names in the leaderboard. The data's name of the second one was not seen.
CORRECTNESS, PREFERENCE = "general correctness", "general preference"
_NAMES = {"open_generation/correctness_task": CORRECTNESS, "open_generation/preference_task": PREFERENCE}
ORDER = (
    *(CORRECTNESS, PREFERENCE, "knowledge", "reasoning", "reasoning/math", "reasoning/coding"),
    *("safety", "safety/bias", "safety/toxicity", "vqa"),
)


def groups(record: RankedRecord) -> tuple[str, ...]:
    category = record.extra.get("category")
    if not isinstance(category, str):
        return ("other",)
    name, of = _NAMES.get(category.lower(), category), record.id.lower()
    if name == "safety":
        return name, "safety/bias" if of.startswith("pairs") else "safety/toxicity"
    if name == "reasoning":
        return name, "reasoning/math" if of.startswith("math") else "reasoning/coding"
    return (name,)


BENCHMARK = Benchmark(
    name="multimodal-rewardbench",
    title=TITLE,
    matches=all_say(TITLE),
    groupings={"official": Grouping(groups, about="2_get_accuracy.py of the benchmark")},
    total=4711,
    order=ORDER,
    prompt=same_id_and_text,
    published=published("multimodal-rewardbench"),
)
