"""A reward model's rewards of ranked records, also where some of them cannot be scored: these have the reason instead.

`mmrlhf score` ends with such a record, because it writes training data. An evaluation goes on, and counts it as not covered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.data.rewarded import Scored
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.scores import score_line, with_critiques
from mmrlhf_jax.data.sources.mmrb2 import INSERTED
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.critic import CritiqueMode, HowToCriticise
from mmrlhf_jax.inference.engine import Engine, Prompt, batched
from mmrlhf_jax.inference.prompts import make_tree
from mmrlhf_jax.progress import Progress

AT_ONCE = 2048  # records that are checked before they are scored


@dataclasses.dataclass(frozen=True)
class Judging:
    """How rewards are made; `how` is for written critiques."""

    critique: CritiqueMode = "written"
    how: HowToCriticise = dataclasses.field(default_factory=HowToCriticise)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the rewards depend on besides model and data."""
        if self.critique != "written":
            return {"critique": self.critique}
        sampled = {"temperature": self.how.temperature, "seed": self.how.seed} if self.how.count > 1 else {}
        return {"critique": self.critique, "critiques": self.how.count, "max_new_tokens": self.how.most, **sampled}


def readable(examples) -> tuple[Any, list[int], dict[int, str]]:
    """(the examples whose media are there and whose answers are texts alone, their indices, the reasons of the others)."""
    reasons: dict[int, str] = {}
    for index, record in enumerate(examples.records):
        pictures = sum(response.extra.get(INSERTED, 0) for response in record.responses)
        if pictures:
            reasons[index] = f"record {record.id!r}: its answers hold {pictures} pictures, which this model does not see"
            continue
        try:
            examples.layout(index)
        except UserError as error:
            reasons[index] = str(error)
    kept = [index for index in range(len(examples)) if index not in reasons]
    if not reasons:
        return examples, kept, reasons
    return (examples.part(kept) if hasattr(examples, "part") else Subset(examples, kept)), kept, reasons


def judged(engine: Engine, examples, indices: Sequence[int], judging: Judging) -> Iterator[tuple[int, Scored]]:
    """Yield (index, record with its rewards) of these examples as they are finished.

    UserError for a reward that is not finite: this is the model's fault, and no record's.
    """
    progress, refusal = Progress("checking records", len(indices)), _Refusal(engine, judging)
    for here in batched(indices, AT_ONCE):
        fit = []
        for index in here:
            reason = refusal(examples, index)
            progress.update()
            if reason is None:
                fit.append(index)
            else:
                yield index, Scored.nothing(examples.records[index], reason)
        yield from _scored(engine, examples, fit, judging)


def _scored(engine: Engine, examples, indices: Sequence[int], judging: Judging) -> Iterator[tuple[int, Scored]]:
    if not indices:
        return
    if judging.critique != "written":
        for index, record in critic.score_each(engine, examples, indices, critique=judging.critique):
            yield index, Scored(record)
        return
    for index, critiques in critic.critiques_each(engine, examples, indices, judging.how):
        record = examples.records[index]
        samples = tuple(tuple((one.text, one.reward) for one in each) for each in critiques)
        made = [with_critiques(response, each) for response, each in zip(record.responses, samples, strict=True)]
        cut = tuple(place for place, each in enumerate(critiques) if any(one.finish_reason == "length" for one in each))
        yield index, Scored(record.replace_responses(made), None, cut, samples if judging.how.count > 1 else ())


class _Refusal:
    """Why a record cannot be scored: media that cannot be decoded, or texts that are too long; None if it can."""

    def __init__(self, engine: Engine, judging: Judging):
        self._answer, self._slots = engine.encoder("answer"), engine.slots
        self._judged = engine.encoder("critique" if judging.critique == "given" else "uncritiqued")
        self._asked = engine.asked(judging.how.most) if judging.critique == "written" else None

    def __call__(self, examples, index: int) -> str | None:
        try:
            return self._check(examples[index], examples.layout(index))
        except UserError as error:
            return str(error)

    def _check(self, example: Example, layout: Layout) -> str | None:
        record, encoder = example.record, self._judged
        for data in (*example.images, *example.frames):
            decode_image(data, f"record {record.id!r}")
        slots = int(Budget(*encoder.measure(record, layout)).slots)
        if slots > self._slots:
            return f"record {record.id!r} needs {slots} slots, and there are {self._slots}: give as many by --slots"
        if self._asked is not None:
            make_tree([Prompt(example, response) for response in record.responses], self._answer, self._asked)
        elif tokens := encoder.beyond_positions(record, layout, slots):
            encoder.check_positions(record, tokens)
        return None


def line(examples, index: int, scored: Scored) -> dict[str, Any]:
    """The line of a score file (`data.scores`)."""
    made = score_line(examples, index, scored.record, scored.truncated, scored.samples)
    if scored.reason is not None:
        for response in made["responses"]:
            response["error"] = scored.reason
    return made
