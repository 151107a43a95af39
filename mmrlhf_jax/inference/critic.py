"""Scoring with a critique-based reward model: it writes a critique of a response, then scores the response with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from mmrlhf_jax.data.overlay import OverlaidExamples, map_records
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine, Prompt, all_finite
from mmrlhf_jax.records import RankedRecord

# written: a critique that the model generates greedily, as in the paper; given: the data's critiques; none: no critique.
CritiqueMode = Literal["written", "given", "none"]


def check_mode(mode: str) -> None:
    if mode not in get_args(CritiqueMode):
        raise UserError(f"--critique {mode!r}: choose from {', '.join(get_args(CritiqueMode))}")


def check_lengths(engine: Engine, examples, critique: CritiqueMode) -> None:
    """UserError if an example does not fit a row, as far as that is known before critiques are written."""
    engine.check_lengths(examples, "critique" if critique == "given" else "uncritiqued")


def score(engine: Engine, examples, *, critique: CritiqueMode = "written", max_new_tokens: int = 512) -> list[RankedRecord]:
    """The examples' records with `reward` set on every response, and `critique` to the one that the reward was computed with.

    UserError that names record and response if a reward is not finite.
    """
    if critique == "written":
        examples = write_critiques(engine, examples, max_new_tokens=max_new_tokens)
    task = "uncritiqued" if critique == "none" else "critique"
    scored = engine.score_responses(examples, task)

    def with_reward(record: RankedRecord, rewards) -> RankedRecord:
        pairs = zip(record.responses, all_finite(rewards, record, "reward"), strict=True)
        return record.replace_responses([dataclasses.replace(r, reward=float(reward)) for r, reward in pairs])

    return [with_reward(record, found["rewards"]) for record, found in zip(examples.records, scored, strict=True)]


def write_critiques(engine: Engine, examples, *, max_new_tokens: int) -> OverlaidExamples:
    """The examples with every response's critique replaced by one that the model generates greedily."""
    prompts = CritiquePrompts(examples)
    texts = iter(engine.generate(prompts, max_new_tokens=max_new_tokens, description="writing critiques"))

    def with_critiques(record: RankedRecord) -> RankedRecord:
        return record.replace_responses([dataclasses.replace(r, critique=next(texts)) for r in record.responses])

    return map_records(examples, with_critiques)


class CritiquePrompts(Sequence[Prompt]):
    """One prompt per response of every example; media are read on access."""

    def __init__(self, examples):
        self._examples = examples
        self._where = [(i, k) for i, record in enumerate(examples.records) for k in range(len(record.responses))]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, number: int) -> Prompt:
        i, k = self._where[number]
        return Prompt(self._examples[i], self._examples.records[i].responses[k])
