"""MM-RLHF-RewardBench: ACC (pairs right) and ACC+ (prompts with all pairs right), per category.

Reference: MM-RLHF `llava/eval/cal_performance_mmreweard_bench.py`. A pair is right if the chosen response scores strictly
higher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.records import RankedRecord, Response

CATEGORIES = ("mcq", "long", "short", "safety", "video")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    pairs: int
    groups: int
    acc: float
    acc_plus: float


def accuracy(records: Sequence[RankedRecord], reward: Callable[[Response], float] = lambda r: r.reward) -> Accuracy:
    """ACC and ACC+ of `reward` over the strictly ordered pairs; groups without such a pair do not count."""
    right_pairs = pairs = right_groups = groups = 0
    for record in records:
        rewards = [reward(response) for response in record.responses]
        outcomes = [rewards[chosen] > rewards[rejected] for chosen, rejected in record.pairs()]
        pairs, right_pairs = pairs + len(outcomes), right_pairs + sum(outcomes)
        groups, right_groups = groups + bool(outcomes), right_groups + (bool(outcomes) and all(outcomes))
    return Accuracy(pairs, groups, right_pairs / max(pairs, 1), right_groups / max(groups, 1))


def by_category(records: Sequence[RankedRecord]) -> dict[str, Accuracy]:
    """One row per category that occurs, then `overall`."""
    found: dict[str, list[RankedRecord]] = {}
    for record in records:
        found.setdefault(category(record), []).append(record)
    ordered = sorted(found, key=lambda name: (CATEGORIES.index(name) if name in CATEGORIES else len(CATEGORIES), name))
    return {name: accuracy(found[name]) for name in ordered} | {"overall": accuracy(records)}


def category(record: RankedRecord) -> str:
    """The record's own `category`, or the first of upstream's five that occurs in a media path, or `other`."""
    if isinstance(record.extra.get("category"), str):
        return record.extra["category"]
    path = " ".join([*record.images, record.video or ""])
    return next((name for name in CATEGORIES if name in path), "other")


def longer_wins(records: Sequence[RankedRecord]) -> float:
    """ACC of the baseline that prefers the longer response; equally long ones count one half."""
    scores = [
        (len(record.responses[c].text) > len(record.responses[r].text))
        + 0.5 * (len(record.responses[c].text) == len(record.responses[r].text))
        for record in records
        for c, r in record.pairs()
    ]
    return sum(scores) / max(len(scores), 1)


def exchange_media(examples) -> OverlaidExamples:
    """Every record with the media of another one: what a reward model that looks at the picture must do badly on.

    Each takes the media of the next record (cyclically) whose media differ from its own.
    """
    return ExchangedExamples(examples)


class ExchangedExamples(OverlaidExamples):
    def __init__(self, examples):
        own = [(record.images, record.video) for record in examples.records]
        count = len(own)
        self.donor = [next((j % count for j in range(i + 1, i + count) if own[j % count] != own[i]), i) for i in range(count)]
        records = [
            dataclasses.replace(record, images=own[j][0], video=own[j][1])
            for record, j in zip(examples.records, self.donor, strict=True)
        ]
        super().__init__(examples, records)

    def __getitem__(self, index: int):
        media = self.examples[self.donor[index]]
        return dataclasses.replace(media, record=self.records[index])

    def layout(self, index: int):
        return self.examples.layout(self.donor[index])
