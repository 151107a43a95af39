"""The media exchanged between prompts: what a reward model then still gets right, it knows without looking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks.ranked import category
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord


def exchange_media(examples, group: Callable[[RankedRecord], str] = category) -> ExchangedExamples:
    """The records that have media, each with the media of another record. A model that uses its input images must score worse
    on them. `group` is the group of a record, which stays as it is and becomes its field `category`.

    Records without media are left out, with a message. Raises UserError if there are no two records with different media.
    """
    exchanged = ExchangedExamples(examples, group)
    if left_out := len(examples) - len(exchanged):
        say(f"{left_out} of {len(examples)} records have no media to exchange and are left out")
    return exchanged


class ExchangedExamples(OverlaidExamples):
    """Each record has the media of the next record (cyclically) whose media differ; its group is unchanged."""

    def __init__(self, examples, group: Callable[[RankedRecord], str]):
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
        records = [_with_media(examples.records[i], *own[j], group) for i, j in zip(seeing, self.donors, strict=True)]
        super().__init__(Subset(examples, seeing), records)
        self.numbers = seeing  # the index in `examples` of each record
        self._all = examples

    def __getitem__(self, index: int) -> Example:
        return dataclasses.replace(self._all[self.donors[index]], record=self.records[index])

    def layout(self, index: int) -> Layout:
        return self._all.layout(self.donors[index])

    def media_content(self, index: int) -> str | None:
        return self._all.media_content(self.donors[index])


def _with_media(
    record: RankedRecord, images: tuple[str, ...], video: str | None, group: Callable[[RankedRecord], str]
) -> RankedRecord:
    extra = {**record.extra, "category": group(record)}  # stored, because it may come from the replaced media path
    return dataclasses.replace(record.with_media(images, video), extra=extra)
