"""Score files: one line per record with its rewards and critiques, as `mmrlhf score` writes them (`rewarded.py` joins them).

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
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import media_names, prompt_digest, text_digest
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import read_bytes
from mmrlhf_jax.finite import number
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord, Response, is_blank

_DIGESTS = ("prompt", "media", "media_content")
_EXPECTED = '{"id", "responses": [{"reward", ...}]}'

Sample = tuple[str, float]  # one of several critiques of a response, and the reward that the response has with it


@dataclasses.dataclass(frozen=True)
class ScoredLine:
    """One line of a score file. `digests` are those of `_DIGESTS` that it has; `texts` has a digest, or None, per response.
    `errors` are the reasons of the responses that have no reward, `truncated` those whose critiques were cut off. `samples` are
    the several critiques of each response; (): there are not several."""

    where: str
    rewards: tuple[float | None, ...]
    critiques: tuple[str | None, ...]
    digests: Mapping[str, str]
    texts: tuple[str | None, ...]
    errors: tuple[str | None, ...]
    truncated: tuple[int, ...]
    samples: tuple[tuple[Sample, ...], ...]

    @property
    def is_checked(self) -> bool:
        """Whether the line has all digests that are needed to recognise another record with the same id."""
        return "prompt" in self.digests and "media" in self.digests and None not in self.texts


def with_critiques(response: Response, critiques: Sequence[Sample]) -> Response:
    """The response with `reward` set to the mean of its critiques' rewards, and `critique` to the first that is not blank."""
    return dataclasses.replace(response, critique=_first_text(critiques), reward=_mean(critiques))


def _first_text(critiques: Sequence[Sample]) -> str | None:
    return next((text for text, _ in critiques if not is_blank(text)), None)


def _mean(critiques: Sequence[Sample]) -> float:
    return math.fsum(reward for _, reward in critiques) / len(critiques)


def score_line(
    examples, index: int, scored: RankedRecord, truncated: Collection[int] = (), samples: Sequence[Sequence[Sample]] = ()
) -> dict[str, Any]:
    """The line of a score file for one record; `scored` is the record with `reward` and `critique` set.

    The critiques of the responses `truncated` were cut off at their longest. `samples` are the critiques of each response with
    their rewards, where there are several; `reward` and `critique` then are those of `with_critiques`.
    """
    record, content = examples.records[index], examples.media_content(index)
    responses = [
        {"reward": made.reward, "critique": made.critique, "digest": text_digest(response.text)}
        for response, made in zip(record.responses, scored.responses, strict=True)
    ]
    for place in truncated:
        responses[place]["truncated"] = True
    for place, several in enumerate(samples):
        responses[place]["critiques"] = [{"text": text, "reward": reward} for text, reward in several]
    return {
        "id": record.id,
        "responses": responses,
        "digests": {"prompt": prompt_digest(record), "media": media_names(record)}
        | ({} if content is None else {"media_content": content}),
    }


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
    places = [(r, f"{where_record}, response {i}") for i, r in enumerate(responses)]
    samples = tuple(_read_samples(*each) for each in places)
    return record_id, ScoredLine(
        where,
        tuple(rewards),
        tuple(_critique(*each) for each in zip(responses, samples, strict=True)),
        {name: value for name, value in digests.items() if value is not None},
        tuple(r.get("digest") for r in responses),
        tuple(r.get("error") for r in responses),
        tuple(i for i, (r, where) in enumerate(places) if _is_truncated(r, where)),
        samples,
    )


def _read_samples(response: Mapping[str, Any], where: str) -> tuple[Sample, ...]:
    """The several critiques. UserError if the response's reward is not the mean of theirs."""
    found = response.get("critiques")
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in found):
        raise UserError(f"{where}: critiques must list objects with text and reward, found {shown(found)}")
    samples = tuple((one["text"], number(one.get("reward"), f"{where}, critique {i}: reward")) for i, one in enumerate(found))
    reward = response.get("reward")
    if samples and reward is not None and not math.isclose(reward, mean := _mean(samples), rel_tol=1e-4, abs_tol=1e-4):
        raise UserError(f"{where}: its reward {reward:g} is not the mean of its critiques' rewards, {mean:g}; correct one")
    return samples


def _critique(response: Mapping[str, Any], samples: Sequence[Sample]) -> str | None:
    """The critique; that of several ones where the line has only these."""
    found = response.get("critique")
    return _first_text(samples) if found is None else found


def _is_truncated(response: Mapping[str, Any], where: str) -> bool:
    found = response.get("truncated")
    if not isinstance(found, bool | None):
        raise UserError(f"{where}: truncated must be true or false, found {shown(found)}")
    return found is True


def _reward(response: Mapping[str, Any], where: str) -> float | None:
    """The reward; None if there is an error in its place."""
    found, error = response.get("reward"), response.get("error")
    if found is not None and error:
        raise UserError(f"{where} stands beside an error ({shown(error)}); keep one of the two")
    return None if found is None and error else number(found, where)


def say_flaws(path: epath.PathLike, scores: Mapping[str, ScoredLine] | None = None) -> None:
    """Print how many responses of a score file have no reward, and of how many critiques were cut off. `scores` are the lines
    that matter (default: all)."""
    scores = read_scores(path) if scores is None else scores
    refused = [(record_id, error) for record_id, line in scores.items() for error in line.errors if error]
    count = sum(len(line.rewards) for line in scores.values())
    if refused:
        records, (first, reason) = len({record_id for record_id, _ in refused}), refused[0]
        say(
            f"{path}: {len(refused)} of {count} responses, in {records} records, have no reward (the first is of {first!r}:"
            f" {reason}); score these records in another way, or leave them out"
        )
    if cut := sum(len(line.truncated) for line in scores.values()):
        say_cut_off(cut, count, f"{path}: ")


def say_cut_off(cut: int, count: int, where: str = "") -> None:
    """Print that of `cut` of `count` responses a critique was cut off."""
    say(f"{where}critiques of {cut} of {count} responses were cut off at their longest (--max-new-tokens)")
