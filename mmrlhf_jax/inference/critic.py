"""Scoring with a critique-based reward model: it writes a critique of a response, then scores the response with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

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
        return write(engine, examples, max_new_tokens=max_new_tokens)
    found = engine.score_responses(examples, "uncritiqued" if critique == "none" else "critique")
    return [_with_rewards(record, each["rewards"]) for record, each in zip(examples.records, found, strict=True)]


def write(engine: Engine, examples, *, max_new_tokens: int) -> list[RankedRecord]:
    """The records with critiques that the model writes greedily, and with the rewards of the conversations that end with them.

    A reward is read where its critique was written, from the keys that are there. It is that of the critique's text, so that it
    can be computed again from the text: where the tokenizer splits the text otherwise than the model wrote it, the branch is
    fed again from there on.
    """
    encoder = engine.encoder("critique")

    def conversation(record, response, plans, new: list[int]):
        return encoder.conversation(record, dataclasses.replace(response, critique=engine.decode(new)), plans)

    asked = engine.asked(max_new_tokens, rewarded=conversation)
    texts = iter(engine.write(CritiquePrompts(examples), asked, description="writing critiques"))
    scored = []
    for record in examples.records:
        written = [next(texts)[0] for _ in record.responses]
        critiques = [engine.text(each) for each in written]
        pairs = zip(record.responses, critiques, strict=True)
        record = record.replace_responses([dataclasses.replace(response, critique=text) for response, text in pairs])
        rewards = [np.nan if each.reward is None else each.reward for each in written]
        scored.append(_with_rewards(record, np.asarray(rewards, np.float32)))
    return scored


def _with_rewards(record: RankedRecord, rewards: np.ndarray) -> RankedRecord:
    pairs = zip(record.responses, all_finite(rewards, record, "reward"), strict=True)
    return record.replace_responses([dataclasses.replace(response, reward=float(reward)) for response, reward in pairs])


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
