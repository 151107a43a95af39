"""A reward model's rewards of a data set for an evaluation: at once, or kept in a directory and shared by hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.rewarded import Scored, scored_records
from mmrlhf_jax.data.scores import say_cut_off
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks.ranked import category
from mmrlhf_jax.evaluation.evaluated import Evaluated
from mmrlhf_jax.evaluation.exchanged import exchange_media
from mmrlhf_jax.evaluation.judging import Judging, judged, line, readable
from mmrlhf_jax.files import exists, read_json_object, write_atomically
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.jobs import ALONE, Share, reserved, run_job
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord

SCORES, JOB = "scores.jsonl", "job.json"  # files of a directory


@dataclasses.dataclass(frozen=True)
class Seen:
    """The examples that a model can be shown, in the order of the data.

    Attributes:
        examples: their media are there, or were exchanged.
        numbers: their indices in the data.
        reasons: by index in the data, why the other records cannot be shown.
        source: the data's name for messages.
        left_out: the number of records that are not evaluated, because they have no media to exchange.
    """

    examples: Any
    numbers: Sequence[int]
    reasons: Mapping[int, str]
    source: str
    left_out: int = 0

    def joined(self, scored: Sequence[Scored], records: Sequence) -> Evaluated:
        """What was found, with the records that could not be shown; `records` are all of the data."""
        rows = [(number, each, place) for place, (number, each) in enumerate(zip(self.numbers, scored, strict=True))]
        rows += [(number, Scored.nothing(records[number], reason), None) for number, reason in self.reasons.items()]
        rows.sort(key=lambda row: row[0])
        return Evaluated([each for _, each, _ in rows], self.examples, [place for _, _, place in rows])


def seen_by(examples, source: str, judging: Judging, blind: bool, group: Callable[[RankedRecord], str] = category) -> Seen:
    """What a model is shown of the examples; `blind`: with the media of another record, and in the `group` of its own.

    UserError if there is nothing, or if the critiques that are to be given are not there.
    """
    part, numbers, reasons = readable(examples)
    if not numbers:
        raise UserError(f"none of {len(examples)} records can be scored; the first: {next(iter(reasons.values()))}")
    if judging.critique == "given":
        responses = [response for record in part.records for response in record.responses]
        lacking = sum(response.critique is None for response in responses)
        if lacking == len(responses):
            raise UserError(f"{source}: --critique given: no response has a critique; let the model write them")
        if lacking:
            say(f"{source}: {lacking} of {len(responses)} responses have no critique, and are scored without one")
    if blind:
        part = exchange_media(part, group)
        numbers = [numbers[number] for number in part.numbers]
    return Seen(part, numbers, reasons, source, len(examples) - len(numbers) - len(reasons))


def rewards_at_once(engine: Engine, seen: Seen, judging: Judging) -> list[Scored]:
    by_index = dict(judged(engine, seen.examples, range(len(seen.examples)), judging))
    found = [by_index[index] for index in range(len(seen.examples))]
    if cut := sum(len(each.truncated) for each in found):
        say_cut_off(cut, sum(len(each.record.responses) for each in found))
    return found


def rewards_in(
    directory: epath.Path, engine: Engine, seen: Seen, judging: Judging, settings: Mapping[str, Any], share: Share = ALONE
) -> list[Scored]:
    """The rewards, whose lines are kept in the directory: a pass that was stopped goes on, and hosts share it.

    `settings` is what else must stay as it is. UserError if the directory was begun otherwise.
    """
    made_by = {"model": engine.fingerprint, "dtype": str(engine.dtype), "template": engine.template, "slots": engine.slots}
    whole = {**made_by, "data": seen.examples.fingerprint, **judging.settings, **settings}
    _settle(directory, whole, writes=share.process == 0)
    path = directory / SCORES
    if share.count > 1 or not exists(path):
        with reserved(path, share) as place:

            def work(indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
                for index, scored in judged(engine, seen.examples, indices, judging):
                    yield index, line(seen.examples, index, scored)

            job = f"eval reward-bench {engine.fingerprint} {judging.settings}"
            run_job(seen.examples, place, job, work, share=share)
    return scored_records(seen.examples, path, seen.source)


def _settle(directory: epath.Path, settings: Mapping[str, Any], writes: bool) -> None:
    """Note what the directory is made with. UserError if it was begun with something else, or has rewards of unknown origin."""
    path, scores = directory / JOB, directory / SCORES
    if exists(path):
        stored = read_json_object(path)
        changed = sorted(name for name in stored | settings if stored.get(name) != settings.get(name))
        if changed:
            what = ", ".join(name.replace("_", " ") for name in changed)
            raise UserError(f"{directory}: was begun with other settings ({what}); choose another --out or remove it")
    elif exists(scores):
        raise UserError(
            f"{scores}: no {JOB} beside it says which model made these rewards; choose another --out, or evaluate them by"
            f" --scores {scores}"
        )
    elif writes:
        write_atomically(path, strict_json.dumps(settings, indent=2).encode())
