"""Score files: written by `mmrlhf score` with one line per record, and read to add their rewards to records.

    {"id": "1", "responses": [{"reward": 0.5, "critique": "...", "digest": "..."}, ...],
     "digests": {"prompt": "...", "media": "...", "media_content": "..."}}

The digests (`data.digests`) identify what was scored; a reward for another prompt, other media or another text is refused. A
hand-written file may lack them; the number of lines that could not be checked is then reported.

A response of which an endpoint would write no critique has the reason as `error`, and null for a reward. One whose critique was
cut off at its longest has `truncated`. Lines with critiques from an endpoint say which one: `critic`. Of several critiques of a
response, `reward` is the mean, and `"critiques": [{"text": "...", "reward": 0.4}, ...]` are all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import comparable, media_names, prompt_digest, text_digest
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import read_bytes
from mmrlhf_jax.finite import number
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord, Response

_DIGESTS = ("prompt", "media", "media_content")
_EXPECTED = '{"id", "responses": [{"reward", ...}]}'


@dataclasses.dataclass(frozen=True)
class ScoredLine:
    """One line of a score file. `digests` are those of `_DIGESTS` that it has; `texts` has a digest, or None, per response.
    `errors` are the reasons of the responses that have no reward, `truncated` those whose critiques were cut off. `samples` are
    (critique, reward) of each of several critiques of a response; (): there are not several."""

    where: str
    rewards: tuple[float | None, ...]
    critiques: tuple[str | None, ...]
    digests: Mapping[str, str]
    texts: tuple[str | None, ...]
    errors: tuple[str | None, ...]
    truncated: tuple[int, ...]
    samples: tuple[tuple[tuple[str, float], ...], ...]

    @property
    def is_checked(self) -> bool:
        """Whether the line has all digests that are needed to recognise another record with the same id."""
        return "prompt" in self.digests and "media" in self.digests and None not in self.texts


# Fields of a response with several critiques: their texts, and the reward of each.
CRITIQUES, CRITIQUE_REWARDS = "critiques", "critique_rewards"


def with_critique_rewards(response: Response, critiques: Sequence[tuple[str, float]]) -> Response:
    """The response with one or several (critique, reward): `critique` is the first, `reward` the mean."""
    texts, rewards = [text for text, _ in critiques], [reward for _, reward in critiques]
    several = {CRITIQUES: texts, CRITIQUE_REWARDS: rewards} if len(critiques) > 1 else {}
    rest = {name: value for name, value in response.extra.items() if name not in (CRITIQUES, CRITIQUE_REWARDS)}
    return dataclasses.replace(response, critique=texts[0], reward=math.fsum(rewards) / len(rewards), extra=rest | several)


def score_line(examples, index: int, scored: RankedRecord, truncated: Collection[int] = ()) -> dict[str, Any]:
    """The line of a score file for one record; `scored` is the record with `reward` and `critique` set, or with what
    `with_critique_rewards` sets. The critiques of the responses `truncated` were cut off at their longest."""
    record, content = examples.records[index], examples.media_content(index)
    return {
        "id": record.id,
        "responses": [
            {"reward": made.reward, "critique": made.critique, "digest": text_digest(response.text)}
            | _several(made)
            | ({"truncated": True} if place in truncated else {})
            for place, (response, made) in enumerate(zip(record.responses, scored.responses, strict=True))
        ],
        "digests": {"prompt": prompt_digest(record), "media": media_names(record)}
        | ({} if content is None else {"media_content": content}),
    }


def _several(made: Response) -> dict[str, Any]:
    if CRITIQUE_REWARDS not in made.extra:
        return {}
    pairs = zip(made.extra[CRITIQUES], made.extra[CRITIQUE_REWARDS], strict=True)
    return {"critiques": [{"text": text, "reward": reward} for text, reward in pairs]}


def score_lines(examples, scored: Iterable[RankedRecord]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a score file. `scored` are the records of `examples`, in order, with `reward` and `critique` set."""
    for index, record in zip(range(len(examples)), scored, strict=True):
        yield score_line(examples, index, record)


def read_scores(path: epath.PathLike) -> dict[str, ScoredLine]:
    """The lines of a score file by id. UserError for an invalid line, a number that is not finite, and a repeated id."""
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such score file; `mmrlhf score --model RM --data SRC --out {path}` writes it")
    scores: dict[str, ScoredLine] = {}
    for count, line in enumerate(read_bytes(path).split(b"\n"), 1):  # splitlines() would cut at U+2028 inside a critique
        if not line.strip():
            continue
        record_id, scored = _read_line(line, f"{path}, line {count}")
        if record_id in scores:
            raise UserError(f"{scored.where}: id {record_id!r} stands in {scores[record_id].where} already; remove one of them")
        scores[record_id] = scored
    return scores


def _read_line(line: bytes, where: str) -> tuple[str, ScoredLine]:
    try:
        row = strict_json.loads(line)
    except strict_json.NotStrict as error:
        raise UserError(f"{where}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON, expected {_EXPECTED} ({error})") from None
    record_id = row.get("id") if isinstance(row, dict) else None
    responses = row.get("responses") if isinstance(row, dict) else None
    if isinstance(record_id, int) and not isinstance(record_id, bool):  # readers of records convert ids to text as well
        record_id = str(record_id)
    if not isinstance(record_id, str) or not isinstance(responses, list) or not all(isinstance(r, dict) for r in responses):
        raise UserError(f"{where}: expected {_EXPECTED}, found {shown(row)}")
    where_record = f"{where}: record {record_id!r}"
    rewards = [_reward(r, f"{where_record}, response {i}: reward") for i, r in enumerate(responses)]
    digests = row.get("digests") or {}
    if not isinstance(digests, dict):
        raise UserError(f"{where_record}: digests must have the keys {', '.join(_DIGESTS)}, found {shown(digests)}")
    texts = [
        (f"response {i}: {name}", r.get(name)) for name in ("critique", "digest", "error") for i, r in enumerate(responses)
    ]
    for what, value in (*digests.items(), *texts):
        if value is not None and not isinstance(value, str):
            raise UserError(f"{where_record}: {what} must be text, found {shown(value)}")
    return record_id, ScoredLine(
        where,
        tuple(rewards),
        tuple(r.get("critique") for r in responses),
        {name: value for name, value in digests.items() if value is not None},
        tuple(r.get("digest") for r in responses),
        tuple(r.get("error") for r in responses),
        tuple(i for i, r in enumerate(responses) if r.get("truncated") is True),
        tuple(_read_several(r.get("critiques"), f"{where_record}, response {i}") for i, r in enumerate(responses)),
    )


def _read_several(value: Any, where: str) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in value):
        raise UserError(f"{where}: critiques must list objects with text and reward, found {shown(value)}")
    return tuple((one["text"], number(one.get("reward"), f"{where}, critique {i}: reward")) for i, one in enumerate(value))


def _reward(response: Mapping[str, Any], where: str) -> float | None:
    """The reward; None if there is an error in its place."""
    found = response.get("reward")
    return None if found is None and response.get("error") else number(found, where)


def say_flaws(path: epath.PathLike) -> None:
    """Print how many responses of a score file have no reward, and how many critiques were cut off."""
    _say_flaws(path, read_scores(path))


def _say_flaws(path: epath.PathLike, scores: Mapping[str, ScoredLine]) -> None:
    refused = [(record_id, error) for record_id, line in scores.items() for error in line.errors if error]
    count = sum(len(line.rewards) for line in scores.values())
    if refused:
        records, (first, reason) = len({record_id for record_id, _ in refused}), refused[0]
        say(
            f"{path}: {len(refused)} of {count} responses, in {records} records, have no reward (the first is of {first!r}:"
            f" {reason}); score these records in another way, or leave them out"
        )
    if cut := sum(len(line.truncated) for line in scores.values()):
        say(f"{path}: {cut} of {count} critiques were cut off at their longest (--max-new-tokens)")


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
    """

    record: RankedRecord
    reason: str | None = None
    truncated: tuple[int, ...] = ()

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
        made = zip(record.responses, line.rewards, line.critiques, line.samples, strict=True)
        scored = record.replace_responses([_scored(response, *values) for response, *values in made])
        found.append(Scored(scored, next(filter(None, line.errors), None), line.truncated))
    if by_name:
        say(f"{path}: the media of {by_name} of {len(found)} records of {source} cannot be read; their names were compared")
    _say_rest(examples, path, source, scores, "; these are not scored")
    return found


def _scored(response: Response, reward: float | None, critique: str | None, samples: Sequence[tuple[str, float]]) -> Response:
    if samples:
        response = with_critique_rewards(response, samples)
    return dataclasses.replace(response, reward=reward, critique=critique)


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
    _say_flaws(path, {record_id: scores[record_id] for record_id in ids if record_id in scores})
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
