"""Scoring with a critique-based reward model: it writes a critique of a response, then scores the response with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.subset import Subset
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
    found = {}
    for number, record in enumerate(examples.records):
        written = [next(texts)[0] for _ in record.responses]
        pairs = zip(record.responses, written, strict=True)
        record = record.replace_responses([dataclasses.replace(r, critique=engine.text(each)) for r, each in pairs])
        found[number] = record, [each.reward for each in written]
    if left := [number for number, (_, rewards) in found.items() if None in rewards]:
        found |= _scored_apart(engine, examples, {number: found[number][0] for number in left})
    return [_with_rewards(record, np.asarray(rewards, np.float32)) for record, rewards in found.values()]


def _scored_apart(engine: Engine, examples, records: dict[int, RankedRecord]) -> dict[int, tuple[RankedRecord, np.ndarray]]:
    """Records and rewards of those whose critiques, tokenised anew, have no room in their branch: by a pass over rows."""
    overlaid = OverlaidExamples(Subset(examples, sorted(records)), [records[number] for number in sorted(records)])
    found = engine.score_responses(overlaid, "critique", description="scoring long critiques")
    return {number: (records[number], each["rewards"]) for number, each in zip(sorted(records), found, strict=True)}


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
