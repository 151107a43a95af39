"""Multimodal RewardBench 2 (MMRB2): of its four tasks of 1,000 pairs, reasoning has answers that a reward model can read.

References: facebookresearch/MMRB2 `evaluate/compute_scores/compute_accuracy.py` (accuracy per task and over all; judges are
asked in both orders, which makes no difference to rewards that are computed one by one),
`benchmark/reasoning_response_only.json` (sources; in 350 of the 1,000 pairs both answers are text alone) and README (results).
"""

from __future__ import annotations

from mmrlhf_jax import strict_json
from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Grouping, all_say
from mmrlhf_jax.evaluation.benchmarks.published import published
from mmrlhf_jax.records import RankedRecord

TITLE = "MMRB2"
REASONING = "reasoning"
SOURCES = ("blink", "mindcube", "muirbench", "realunify", "visulogic", "vstar")


def groups(record: RankedRecord) -> tuple[str, ...]:
    """The task, and the part of it that comes from one source."""
    if record.source in SOURCES:
        return REASONING, f"{REASONING}/{record.source}"
    return ("other",)


def prompt(record: RankedRecord) -> object:
    """The prompt's text and where it comes from, because a pair's id names the pair."""
    metadata = record.extra.get("prompt_metadata")
    return record.prompt, record.source, strict_json.dumps(metadata, sort_keys=True) if metadata else record.images


BENCHMARK = Benchmark(
    name="mmrb2",
    title=TITLE,
    matches=all_say(TITLE),
    groupings={"official": Grouping(groups, {REASONING: 1000}, "tasks of the benchmark")},
    total=1000,
    order=(REASONING, *(f"{REASONING}/{source}" for source in SOURCES)),
    prompt=prompt,
    published=published("mmrb2"),
)
