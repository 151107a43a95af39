"""Scoring with a critique-based reward model: it writes a critique of a response, then scores the response with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.data.tokens import Conversation
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine, Prompt, all_finite
from mmrlhf_jax.inference.prompts import Rewarded
from mmrlhf_jax.inference.requests import Written
from mmrlhf_jax.records import RankedRecord

# written: a critique that the model generates greedily, as in the paper; given: the data's critiques; none: no critique.
CritiqueMode = Literal["written", "given", "none"]


def check_mode(mode: str) -> None:
    if mode not in get_args(CritiqueMode):
        raise UserError(f"--critique {mode!r}: choose from {', '.join(get_args(CritiqueMode))}")


def check_lengths(engine: Engine, examples, critique: CritiqueMode) -> None:
    """UserError if an example does not fit a row, as far as that is known before critiques are written."""
    engine.check_lengths(examples, "critique" if critique == "given" else "uncritiqued")


# Records at a time: whose prompts are tokenised, and sorted into lanes; or that one pass over rows computes.
WRITTEN_AT_ONCE, READ_AT_ONCE = 2048, 512


def score(engine: Engine, examples, *, critique: CritiqueMode = "written", max_new_tokens: int = 512) -> list[RankedRecord]:
    """The examples' records, in order, scored as in `score_each`."""
    found = dict(score_each(engine, examples, range(len(examples)), critique=critique, max_new_tokens=max_new_tokens))
    return [found[index] for index in range(len(examples))]


def score_each(
    engine: Engine, examples, indices: Sequence[int], *, critique: CritiqueMode = "written", max_new_tokens: int = 512
) -> Iterator[tuple[int, RankedRecord]]:
    """Yield (index, record) of these examples as they are finished: records with `reward` set on every response, and `critique`
    to the one that the reward was computed with.

    UserError that names record and response if a reward is not finite.
    """
    at_once = WRITTEN_AT_ONCE if critique == "written" else READ_AT_ONCE
    for start in range(0, len(indices), at_once):
        here = indices[start : start + at_once]
        part = Subset(examples, here)
        if critique == "written":
            found = _write(engine, part, max_new_tokens)
        else:
            found = enumerate(_score(engine, part, "uncritiqued" if critique == "none" else "critique"))
        yield from ((here[place], record) for place, record in found)


def _score(engine: Engine, examples, task: str) -> list[RankedRecord]:
    found = engine.score_responses(examples, task)
    return [_with_rewards(record, each["rewards"]) for record, each in zip(examples.records, found, strict=True)]


def _write(engine: Engine, examples, max_new_tokens: int) -> Iterator[tuple[int, RankedRecord]]:
    """Yield (index, record) with critiques that the model writes greedily, and the rewards of the conversations that end with
    them.

    A reward is read where its critique was written, from the keys that are there. It is that of the critique's text, so that it
    can be computed again from the text: where the tokenizer splits the text otherwise than the model wrote it, the branch is
    fed again from there on. Critiques for whose text the branch has no room then are scored at the end, by a pass over rows.
    """
    prompts = CritiquePrompts(examples)
    asked = engine.asked(max_new_tokens, rewarded=critique_conversation(engine))
    written: dict[int, dict[int, Written]] = {}
    apart: dict[int, RankedRecord] = {}
    for number, (text,) in engine.write_each(prompts, asked, "writing critiques"):
        index, response = prompts.where(number)
        record, of_record = examples.records[index], written.setdefault(index, {})
        of_record[response] = text
        if len(of_record) < len(record.responses):
            continue
        texts = [of_record[place] for place in range(len(record.responses))]
        del written[index]
        pairs = zip(record.responses, texts, strict=True)
        record = record.replace_responses([dataclasses.replace(r, critique=engine.decode(each.tokens)) for r, each in pairs])
        if any(each.reward is None for each in texts):
            apart[index] = record
        else:
            yield index, _with_rewards(record, np.asarray([each.reward for each in texts], np.float32))
    if apart:
        left = sorted(apart)
        overlaid = OverlaidExamples(Subset(examples, left), [apart[index] for index in left])
        yield from zip(left, _score(engine, overlaid, "critique"), strict=True)


def critique_conversation(engine: Engine) -> Rewarded:
    """Makes the conversation whose reward is that of a critique, from the critique's tokens."""
    encoder = engine.encoder("critique")

    def conversation(record, response, plans, new: list[int]) -> Conversation:
        return encoder.conversation(record, dataclasses.replace(response, critique=engine.decode(new)), plans)

    return conversation


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

    def where(self, number: int) -> tuple[int, int]:
        """(index of the example, index of the response) of a prompt."""
        return self._where[number]

    def __getitem__(self, number: int) -> Prompt:
        i, k = self._where[number]
        return Prompt(self._examples[i], self._examples.records[i].responses[k])
