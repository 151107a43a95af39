"""Examples with changed records, for values that were added later: rewards from a score file, critiques written by a model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

from mmrlhf_jax.data.examples import Example, Layout, dump_record
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.records import RankedRecord


class OverlaidExamples:
    """The same media with other records: `records[i]` replaces the i-th record."""

    def __init__(self, examples, records: Sequence[RankedRecord]):
        if len(records) != len(examples):
            raise ValueError(f"{len(records)} records for {len(examples)} examples")
        self.examples, self.records = examples, list(records)
        digest = hashlib.sha256(examples.fingerprint.encode())
        for record in self.records:
            digest.update(dump_record(record).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return dataclasses.replace(self.examples[index], record=self.records[index])

    def layout(self, index: int) -> Layout:
        return self.examples.layout(index)

    def media_content(self, index: int) -> str | None:
        return self.examples.media_content(index)

    @property
    def weights(self):
        return self.examples.weights


def map_records(examples, change: Callable[[RankedRecord], RankedRecord]) -> OverlaidExamples:
    return OverlaidExamples(examples, [change(record) for record in examples.records])


def with_human_margins(examples) -> OverlaidExamples:
    """Set rewards to the mean human scores (`RankedRecord.mean_scores`), so that margins are differences of human scores."""

    def change(record: RankedRecord) -> RankedRecord:
        pairs = zip(record.responses, record.mean_scores(), strict=True)
        return record.replace_responses([dataclasses.replace(response, reward=mean) for response, mean in pairs])

    return map_records(examples, change)


def with_critiques(examples, field: str | None, source: str) -> OverlaidExamples:
    """Take critiques from another field of the responses, or remove them (`field` None). UserError if no response has the
    field. `source` is the data's name for messages."""

    def change(record: RankedRecord) -> RankedRecord:
        found = [None if field is None else response.extra.get(field) for response in record.responses]
        for critique in found:
            if critique is not None and not isinstance(critique, str):
                where = f"{source}: record {record.id!r}: data.critiques"
                raise UserError(f"{where}: field {field!r} must be a string, found {shown(critique)}")
        pairs = zip(record.responses, found, strict=True)
        return record.replace_responses([dataclasses.replace(response, critique=c) for response, c in pairs])

    changed = map_records(examples, change)
    if field is not None and all(response.critique is None for record in changed.records for response in record.responses):
        raise UserError(
            f"{source}: data.critiques: no response has a field {field!r}; `mmrlhf data show` lists the fields that there are"
        )
    return changed


def lacking_rewards(examples) -> list[str]:
    """The ids of records in which any response lacks a reward."""
    return [record.id for record in examples.records if any(response.reward is None for response in record.responses)]
