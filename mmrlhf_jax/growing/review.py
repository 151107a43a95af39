"""The queue of a grown data set and people's verdicts on it: `review.jsonl`, and what they make of the records.

A line of `review.jsonl` is a record that people look at: its id, the digest of its prompt, why it was selected, the digests of
its answers in the order in which they are shown, and the verdicts that have been imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import prompt_digest, text_digest
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists, write_json_lines
from mmrlhf_jax.growing.directory import json_lines
from mmrlhf_jax.growing.verdicts import LEVELS, Verdict, agreed_ranks, digests_of
from mmrlhf_jax.records import RankedRecord


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record in the queue."""

    id: str
    prompt: str
    selected_because: str
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"verdicts": [verdict.to_json() for verdict in self.verdicts]}

    def with_verdict(self, verdict: Verdict) -> tuple[Entry, str]:
        """The entry with one more verdict, and what became of it: "new", "replaced" (an earlier one of the same person),
        "known" (it is there already), or "older" (a later one of this person, which says something else, is there)."""
        earlier = next((one for one in self.verdicts if one.person == verdict.person), None)
        if earlier is None:
            return dataclasses.replace(self, verdicts=(*self.verdicts, verdict)), "new"
        if verdict.says_as(earlier):
            return self, "known"
        if verdict.when < earlier.when:
            return self, "older"
        replaced = tuple(verdict if one is earlier else one for one in self.verdicts)
        return dataclasses.replace(self, verdicts=replaced), "replaced"


def new_entry(record: RankedRecord, because: str, seed: int) -> Entry:
    """The order in which answers are shown is drawn for each record, so that no critic or policy has the first place."""
    answers = digests_of(record)
    random.Random(f"{seed} {record.id}").shuffle(answers)
    return Entry(record.id, prompt_digest(record), because, tuple(answers))


def read_entries(path: epath.Path, records: Mapping[str, RankedRecord]) -> list[Entry]:
    """The queue. UserError if it is not of these records."""
    if not exists(path):
        return []
    found = []
    for number, row in enumerate(json_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            verdicts = tuple(Verdict(**each) for each in row["verdicts"])
            entry = Entry(row["id"], row["prompt"], row["selected_because"], tuple(row["answers"]), verdicts)
            rated = all(verdict.ratings.keys() == set(entry.answers) for verdict in verdicts)
            whole = rated and all(rating in LEVELS for verdict in verdicts for rating in verdict.ratings.values())
        except (LookupError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise UserError(f"{where}: is not as `mmrlhf review` writes it")
        record = records.get(entry.id)
        if record is None or entry.prompt != prompt_digest(record) or set(entry.answers) != set(digests_of(record)):
            raise UserError(f"{where}: record {entry.id!r} is not the one of records.jsonl; they belong to different runs")
        found.append(entry)
    return found


def write_entries(path: epath.Path, entries: Iterable[Entry]) -> None:
    write_json_lines(path, [entry.to_json() for entry in entries])


def fingerprint(entries: Sequence[Entry]) -> str:
    """What a queue is recognised by, whatever people have said of it."""
    shown = [(entry.id, entry.prompt, entry.answers) for entry in entries]
    return hashlib.sha256(strict_json.dumps(shown).encode()).hexdigest()[:16]


def reviewed(record: RankedRecord, entry: Entry) -> RankedRecord:
    """The record with the ranks of people, and those of the critic as `critic_rank`; as it is if there is no verdict."""
    if not entry.verdicts:
        return record
    ranks = agreed_ranks([verdict.ratings for verdict in entry.verdicts])
    made = []
    for response in record.responses:
        extra = dict(response.extra)
        extra.setdefault("critic_rank", response.rank)
        made.append(dataclasses.replace(response, rank=ranks[text_digest(response.text)], extra=extra))
    origin = {"selected_because": entry.selected_because, "review": [_provenance(record, each) for each in entry.verdicts]}
    return dataclasses.replace(record.replace_responses(made), extra=dict(record.extra) | origin)


def _provenance(record: RankedRecord, verdict: Verdict) -> dict[str, Any]:
    """A verdict with its ratings in the order of the record's responses."""
    return verdict.to_json() | {"ratings": [verdict.ratings[text_digest(response.text)] for response in record.responses]}
