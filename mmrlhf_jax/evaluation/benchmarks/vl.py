"""VL-RewardBench: 1,250 pairs in three groups, which follow from the ids.

References: vl-rewardbench/VL_RewardBench `cal.py` (the group belongs to what stands before the first `-` or `_` of an id;
overall accuracy is over all pairs, the macro average the mean of the three groups) and yfzhang114/r1_reward
`inference/VL-Reward-Bench/get_acc.py`, whose search for lower-case "rlhf" and "rlaif" moves 301 pairs from hallucination to
general; the row of MM-RLHF-Reward in MM-RLHF's paper fits that grouping.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrlhf_jax.evaluation.benchmarks.benchmark import (
    MACRO,
    OVERALL,
    Benchmark,
    Grouping,
    Published,
    all_say,
    fits_in,
    same_id_and_text,
)
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


_PUBLISHED = Published(
    "Accuracy",
    "MM-RLHF (arXiv 2502.10391), table 5",
    (*ORDER, MACRO),
    (
        ("LLaVA-OV-7B", (0.322, 0.201, 0.571, 0.3647)),
        ("VITA-1.5", (0.1855, 0.0893, 0.2211, 0.1648)),
        ("SliME", (0.0723, 0.2709, 0.186, 0.1904)),
        ("DeepSeek-VL2", (0.297, 0.238, 0.509, 0.348)),
        ("Phi-3.5-Vision", (0.28, 0.224, 0.566, 0.3567)),
        ("Molmo-7B", (0.311, 0.318, 0.562, 0.397)),
        ("Pixtral", (0.356, 0.259, 0.599, 0.4047)),
        ("Qwen2-VL-72B", (0.381, 0.328, 0.58, 0.4297)),
        ("NVLM-D-72B", (0.389, 0.316, 0.62, 0.4417)),
        ("InternVL2-26B", (0.393, 0.369, 0.608, 0.4567)),
        ("GPT-4o-mini", (0.417, 0.345, 0.582, 0.448)),
        ("Claude-3.5-Sonnet", (0.434, 0.55, 0.623, 0.5357)),
        ("GPT-4o", (0.491, 0.676, 0.705, 0.624)),
        ("Gemini-1.5-Pro", (0.508, 0.725, 0.642, 0.625)),
    ),
    "Generative judges: their ties and replies without a verdict leave the denominators. The averages of VITA-1.5 and SliME are"
    " not the means of their groups, but stand so in the table.",
)
_PAPER = Published(
    "Accuracy, the paper's grouping",
    "MM-RLHF (arXiv 2502.10391), table 5",
    (*ORDER, OVERALL),
    (("MM-RLHF-Reward-7B", (0.4504, 0.5045, 0.5755, 0.5015)),),
    "These groups fit --grouping paper, whose denominators are 484, 448 and 318, and the average is over all pairs.",
    grouping="paper",
)

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
    published=(_PUBLISHED, _PAPER),
)
