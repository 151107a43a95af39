"""VL-RewardBench: 1,250 pairs in three groups, which follow from the ids.

References: vl-rewardbench/VL_RewardBench `cal.py` (the group belongs to what stands before the first `-` or `_` of an id;
overall accuracy is over all pairs, the macro average the mean of the three groups) and yfzhang114/r1_reward
`inference/VL-Reward-Bench/get_acc.py`, whose search for lower-case "rlhf" and "rlaif" moves 301 pairs from hallucination to
general; the row of MM-RLHF-Reward in MM-RLHF's paper fits that grouping.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Grouping, all_say, fits_in, same_id_and_text
from mmrlhf_jax.evaluation.benchmarks.published import published
from mmrlhf_jax.records import RankedRecord

TITLE, TOTAL = "VL-RewardBench", 1250
GENERAL, HALLUCINATION, REASONING = ORDER = ("general", "hallucination", "reasoning")
_GROUP_OF = {
    "hallucination": HALLUCINATION,  # POVID
    "RLHF": HALLUCINATION,
    "RLAIF": HALLUCINATION,
    "mathverse": REASONING,
    "mmmu": REASONING,
    "wildvision": GENERAL,
    "LRVInstruction": GENERAL,  # this one and the following ones are VLFeedback's
    "jailbreak": GENERAL,
    "politics": GENERAL,
    "svit": GENERAL,
}


def prefix(record_id: str) -> str:
    return re.split("[-_]", record_id, maxsplit=1)[0]


def official(record: RankedRecord) -> tuple[str, ...]:
    """As in the benchmark's own code, in which every id that it does not know is VLFeedback's."""
    return (_GROUP_OF.get(prefix(record.id), GENERAL),)


def paper(record: RankedRecord) -> tuple[str, ...]:
    """As in the code of MM-RLHF's authors, which looks for lower-case letters only."""
    if any(part in record.id for part in ("mmmu", "mathverse")):
        return (REASONING,)
    return (HALLUCINATION if any(part in record.id for part in ("hallucination", "rlhf", "rlaif")) else GENERAL,)


def matches(records: Sequence[RankedRecord]) -> bool:
    """Whether every record is of the benchmark's own form, or, as MM-RLHF's authors publish it, has one of its ids and two
    responses."""
    if all_say(TITLE)(records):
        return True
    are_like = bool(records) and all(prefix(record.id) in _GROUP_OF and len(record.responses) == 2 for record in records)
    return are_like and fits_in(records, TOTAL)


BENCHMARK = Benchmark(
    name="vl-rewardbench",
    title=TITLE,
    matches=matches,
    groupings={
        "official": Grouping(official, {GENERAL: 183, HALLUCINATION: 749, REASONING: 318}, "cal.py of the benchmark"),
        "paper": Grouping(paper, {GENERAL: 484, HALLUCINATION: 448, REASONING: 318}, "get_acc.py of MM-RLHF's authors"),
    },
    total=TOTAL,
    order=ORDER,
    prompt=same_id_and_text,
    published=published("vl-rewardbench"),
)
