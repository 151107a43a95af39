"""Examples whose responses carry something that was made later: rewards from a score file, critiques a model wrote."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.examples import Example, Layout, dump_record
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.records import RankedRecord


class OverlaidExamples:
    """The same media, other records: `records[i]` takes the place of the i-th record."""

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

    @property
    def weights(self):
        return self.examples.weights


def map_records(examples, change: Callable[[RankedRecord], RankedRecord]) -> OverlaidExamples:
    return OverlaidExamples(examples, [change(record) for record in examples.records])


def read_scores(path: epath.PathLike) -> dict[str, list[Mapping]]:
    """`mmrlhf score` output: id -> one {"reward", "critique"} per response. UserError names the line that is not."""
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such score file; `mmrlhf score --model RM --data SRC --out {path}` writes it")
    scores: dict[str, list[Mapping]] = {}
    for number, line in enumerate(path.read_text().split("\n"), 1):  # splitlines() would cut at U+2028 inside a critique
        if not line.strip():
            continue
        try:
            row = strict_json.loads(line)
            scores[row["id"]] = [{"reward": float(r["reward"]), "critique": r.get("critique")} for r in row["responses"]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path}, line {number}: expected {{"id", "responses": [{{"reward", ...}}]}}') from None
    return scores


def with_rewards(examples, path: epath.PathLike) -> OverlaidExamples:
    """Rewards from a score file. A record that it lacks keeps its own; another number of responses is a UserError."""
    scores = read_scores(path)

    def change(record: RankedRecord) -> RankedRecord:
        found = scores.get(record.id)
        if found is None:
            return record
        if len(found) != len(record.responses):
            raise UserError(
                f"{path}: record {record.id!r} has {len(found)} scores for {len(record.responses)} responses;"
                " score this data again"
            )
        pairs = zip(record.responses, found, strict=True)
        return record.replace_responses([dataclasses.replace(r, reward=s["reward"]) for r, s in pairs])

    return map_records(examples, change)


def with_human_margins(examples) -> OverlaidExamples:
    """Rewards = the mean of the human scores, so that margins are differences of human scores."""

    def change(record: RankedRecord) -> RankedRecord:
        return record.replace_responses([dataclasses.replace(r, reward=r.mean_score) for r in record.responses])

    return map_records(examples, change)


def with_critiques(examples, field: str | None) -> OverlaidExamples:
    """Critiques from another field of the responses, or none at all. UserError where no response has the field."""

    def change(record: RankedRecord) -> RankedRecord:
        found = [None if field is None else response.extra.get(field) for response in record.responses]
        for critique in found:
            if critique is not None and not isinstance(critique, str):
                raise UserError(f"record {record.id!r}: data.critiques: field {field!r} must be a string, found {critique!r}")
        pairs = zip(record.responses, found, strict=True)
        return record.replace_responses([dataclasses.replace(response, critique=c) for response, c in pairs])

    changed = map_records(examples, change)
    if field is not None and all(response.critique is None for record in changed.records for response in record.responses):
        raise UserError(
            f"data.critiques: no response has a field {field!r}; `mmrlhf data show` lists the fields that there are"
        )
    return changed


def check_rewards(examples, source: str, what: str, instead: str) -> None:
    """Raise UserError that counts the responses without the reward (`what` it is made of), and says what to do `instead`."""
    lacking = [r.id for r in examples.records if any(x.reward is None for x in r.responses)]
    if lacking:
        raise UserError(
            f"{source}: {len(lacking)} of {len(examples)} records have responses without a {what}"
            f" (the first is {lacking[0]!r}); {instead}"
        )
