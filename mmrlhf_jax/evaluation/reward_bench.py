"""MM-RLHF-RewardBench: ACC (pairs right) and ACC+ (prompts with all pairs right), per category.

Reference: MM-RLHF `llava/eval/cal_performance_mmreweard_bench.py`. A pair is right if the chosen response scores strictly
higher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord, Response

CATEGORIES = ("mcq", "long", "short", "safety", "video")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """`acc` is the share of right pairs, `acc_plus` the share of groups all of whose pairs are right."""

    pairs: int
    groups: int
    acc: float
    acc_plus: float


def accuracy(records: Sequence[RankedRecord], reward: Callable[[Response], float] = lambda r: r.reward) -> Accuracy:
    """ACC and ACC+ of `reward` over the strictly ordered pairs; groups without such a pair are left out."""
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
    """The record's field `category`, else the first of the benchmark's five that occurs in a media path, else `other`."""
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


def exchange_media(examples) -> ExchangedExamples:
    """The records that have media, each with the media of another record. A model that uses its input images must score worse
    on them.

    Records without media are left out, with a message. Raises UserError if there are no two records with different media.
    """
    exchanged = ExchangedExamples(examples)
    if left_out := len(examples) - len(exchanged):
        say(f"{left_out} of {len(examples)} records have no media to exchange and are left out")
    return exchanged


class ExchangedExamples(OverlaidExamples):
    """Each record has the media of the next record (cyclically) whose media differ; its category is unchanged."""

    def __init__(self, examples):
        own = [(record.images, record.video) for record in examples.records]
        seeing = [i for i, media in enumerate(own) if media != ((), None)]
        if len({own[i] for i in seeing}) < 2:
            raise UserError(
                f"media cannot be exchanged: {len(seeing)} of {len(examples)} records have any, and no two have different ones;"
                " give records of at least two pictures"
            )
        self.donors = []
        for place, i in enumerate(seeing):
            following = (seeing[(place + step) % len(seeing)] for step in range(1, len(seeing)))
            self.donors.append(next(j for j in following if own[j] != own[i]))
        records = [_with_media(examples.records[i], *own[j]) for i, j in zip(seeing, self.donors, strict=True)]
        super().__init__(Subset(examples, seeing), records)
        self._all = examples

    def __getitem__(self, index: int) -> Example:
        return dataclasses.replace(self._all[self.donors[index]], record=self.records[index])

    def layout(self, index: int) -> Layout:
        return self._all.layout(self.donors[index])

    def media_content(self, index: int) -> str | None:
        return self._all.media_content(self.donors[index])


def _with_media(record: RankedRecord, images: tuple[str, ...], video: str | None) -> RankedRecord:
    extra = {**record.extra, "category": category(record)}  # stored, because it may come from the replaced media path
    return dataclasses.replace(record.with_media(images, video), extra=extra)
