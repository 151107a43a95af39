"""Multimodal RewardBench: 4,711 released pairs in six categories, two of which have two parts.

References: facebookresearch/multimodal_rewardbench `scripts/2_get_accuracy.py` (accuracy per category and over all pairs; the
beginning of an id parts safety into bias and toxicity, and reasoning into math and coding) and its README (leaderboard). The
paper has 500 pairs more, of Hateful Memes, which cannot be released.
"""

from __future__ import annotations

from mmrlhf_jax.evaluation.benchmarks.benchmark import OVERALL, Benchmark, Grouping, Published, all_say, same_id_and_text
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


_LEADERBOARD = Published(
    "Accuracy",
    "README of facebookresearch/multimodal_rewardbench (arXiv 2502.14191)",
    (CORRECTNESS, PREFERENCE, "knowledge", "reasoning", "safety", "vqa", OVERALL),
    (
        ("Claude 3.5 Sonnet (Dec 2024)", (0.626, 0.678, 0.739, 0.668, 0.687, 0.856, 0.720)),
        ("Gemini 1.5 Pro (Dec 2024)", (0.635, 0.677, 0.663, 0.618, 0.765, 0.872, 0.720)),
        ("GPT-4o (Dec 2024)", (0.626, 0.690, 0.720, 0.647, 0.669, 0.872, 0.715)),
        ("Llama-3.2-90B-Vision-Instruct", (0.600, 0.684, 0.612, 0.546, 0.519, 0.771, 0.624)),
        ("Aria", (0.595, 0.635, 0.555, 0.524, 0.502, 0.642, 0.573)),
        ("Molmo-7B-D-0924", (0.568, 0.594, 0.546, 0.521, 0.442, 0.603, 0.543)),
        ("Llama-3.2-11B-Vision-Instruct", (0.578, 0.658, 0.555, 0.512, 0.355, 0.558, 0.524)),
        ("LLaVA-1.5-13B", (0.533, 0.552, 0.505, 0.513, 0.349, 0.518, 0.489)),
    ),
    "With the pairs of Hateful Memes, which are not released: safety and overall are of other pairs than a released file has."
    " Generative judges: a reply without a verdict is decided by a coin.",
)

BENCHMARK = Benchmark(
    name="multimodal-rewardbench",
    title=TITLE,
    matches=all_say(TITLE),
    groupings={"official": Grouping(groups, about="2_get_accuracy.py of the benchmark")},
    total=4711,
    order=ORDER,
    prompt=same_id_and_text,
    published=(_LEADERBOARD,),
)
