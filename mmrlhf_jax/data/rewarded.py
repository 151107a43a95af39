"""Records with the rewards of a score file: each line is compared with the record of its id before it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from mmrlhf_jax.data.digests import comparable, media_names, prompt_digest, text_digest
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.scores import Sample, ScoredLine, read_scores, say_flaws
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord


def with_rewards(examples, path: epath.PathLike, source: str) -> OverlaidExamples:
    """The examples with the rewards of a score file. Records without a line keep their own rewards; they are counted. `source`
    is the data's name for messages.

    UserError for a record whose prompt, media or responses are not those that were scored, and for a file without any line for
    these records.
    """
    scores = read_scores(path)
    _ = examples.fingerprint  # computing it digests all media; `media_content` then reads none again
    found = _lines_of(examples, scores, path, source)
    for place, (record, line) in enumerate(zip(examples.records, found, strict=True)):
        if line is not None:
            _check(record, line, examples.media_content(place))
    _say_rest(examples, path, source, scores, "; these keep the rewards that the data has, if any")

    def change(record: RankedRecord) -> RankedRecord:
        if (line := scores.get(record.id)) is None:
            return record
        pairs = zip(record.responses, line.rewards, strict=True)
        return record.replace_responses([dataclasses.replace(response, reward=reward) for response, reward in pairs])

    return OverlaidExamples(examples, [change(record) for record in examples.records])


class Scored(NamedTuple):
    """A record with the rewards that were found and with no others.

    Attributes:
        reason: why responses have none; None: all have one.
        truncated: the responses of which a critique was cut off at its longest.
        samples: the several critiques of each response; (): there are not several.
    """

    record: RankedRecord
    reason: str | None = None
    truncated: tuple[int, ...] = ()
    samples: tuple[tuple[Sample, ...], ...] = ()

    @staticmethod
    def nothing(record: RankedRecord, reason: str) -> Scored:
        """The record without any reward."""
        bare = [dataclasses.replace(response, reward=None) for response in record.responses]
        return Scored(record.replace_responses(bare), reason)


def scored_records(examples, path: epath.PathLike, source: str) -> list[Scored]:
    """Every record with the rewards and critiques of a score file.

    Media that are not there are compared by their names; the number of such records is said. UserError as in `with_rewards`.
    """
    scores = read_scores(path)
    found, by_name = [], 0
    for place, (record, line) in enumerate(zip(examples.records, _lines_of(examples, scores, path, source), strict=True)):
        if line is None:
            found.append(Scored.nothing(record, f"record {record.id!r} has no line in {path}"))
            continue
        content = None
        if "media_content" in line.digests:
            try:
                content = examples.media_content(place)
            except UserError:  # the media are not there
                by_name += 1
        _check(record, line, content)
        made = zip(record.responses, line.rewards, line.critiques, strict=True)
        scored = [dataclasses.replace(one, reward=reward, critique=critique) for one, reward, critique in made]
        reason, samples = next(filter(None, line.errors), None), line.samples if any(line.samples) else ()
        found.append(Scored(record.replace_responses(scored), reason, line.truncated, samples))
    if by_name:
        say(f"{path}: the media of {by_name} of {len(found)} records of {source} cannot be read; their names were compared")
    _say_rest(examples, path, source, scores, "; these are not scored")
    return found


def _lines_of(examples, scores: Mapping[str, ScoredLine], path: epath.PathLike, source: str) -> list[ScoredLine | None]:
    """The line of every record. UserError if there is none at all."""
    found = [scores.get(record.id) for record in examples.records]
    if not any(found):
        raise UserError(f"{path}: none of its {len(scores)} lines is of a record of {source}; score this data")
    return found


def _check(record: RankedRecord, line: ScoredLine, content: str | None) -> None:
    """UserError if the record is not the one that the line was made from; it says what differs."""
    where, again = f"{line.where}: record {record.id!r}", "score this data again"
    if len(line.rewards) != len(record.responses):
        raise UserError(f"{where} has {len(line.rewards)} scores for {len(record.responses)} responses; {again}")
    if line.digests.get("prompt", own := prompt_digest(record)) != own:
        raise UserError(f"{where} was scored with another prompt; {again}")
    by_content = comparable(line.digests.get("media_content"), content)
    scored, own = ("media_content", content) if by_content else ("media", media_names(record))
    if line.digests.get(scored, own) != own:
        raise UserError(f"{where} was scored with other media; {again}")
    texts = [text_digest(response.text) for response in record.responses]
    other = [i for i, (text, own) in enumerate(zip(line.texts, texts, strict=True)) if text not in (None, own)]
    if other and sorted(texts) == sorted(map(str, line.texts)):
        raise UserError(f"{where} was scored with its responses in another order; {again}")
    if other:
        raise UserError(f"{where} was scored with another text as response {other[0]}; {again}")


def _say_rest(examples, path: epath.PathLike, source: str, scores: Mapping[str, ScoredLine], rest: str) -> None:
    """Print how many records have no line, how many lines no record, and how many lines could not be checked. `rest` says what
    becomes of records without a line."""
    ids = [record.id for record in examples.records]
    lacking = [record_id for record_id in ids if record_id not in scores]
    say_flaws(path, {record_id: scores[record_id] for record_id in ids if record_id in scores})
    if lacking:
        kept = f"the first is {lacking[0]!r}{rest}"
        say(f"{path}: has no line for {len(lacking)} of {len(ids)} records of {source} ({kept})")
    if others := list(scores.keys() - set(ids)):
        say(f"{path}: {len(others)} of {len(scores)} lines are of no record of {source} (one is {min(others)!r}), and not used")
    unchecked = sum(not line.is_checked for line in scores.values())
    if unchecked:
        say(
            f"{path}: {unchecked} of {len(scores)} lines do not say what was scored (digests of prompt, media and texts, which"
            " `mmrlhf score` writes): of these only ids and numbers of responses could be compared"
        )
