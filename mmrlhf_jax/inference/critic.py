"""Scoring with a critique-based reward model: it writes a critique of a response, then scores the response with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from mmrlhf_jax.data.digests import digest
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.data.tokens import Conversation
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.engine import Engine, Prompt, all_finite, batched
from mmrlhf_jax.inference.prompts import Rewarded
from mmrlhf_jax.inference.requests import Written
from mmrlhf_jax.inference.sampling import GREEDY, Sampling
from mmrlhf_jax.records import RankedRecord, Response

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


@dataclasses.dataclass(frozen=True)
class HowToCriticise:
    """`count` critiques of every response, of up to `most` tokens: one is written greedily, several are sampled at
    `temperature`. Every response has random numbers of its own, from `seed`, its record's id and its text."""

    count: int = 1
    most: int = 512
    temperature: float = 1.0
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return GREEDY if self.count == 1 else Sampling(temperature=self.temperature, seed=self.seed)

    def seed_of(self, record: RankedRecord, response: Response) -> int | None:
        """The seed of a response's critiques; None: they are not sampled."""
        if self.count == 1:
            return None
        return int(digest(b"%d" % self.seed, record.id.encode(), response.text.encode("utf-8", "surrogatepass"))[:8], 16)


@dataclasses.dataclass(frozen=True)
class Critique:
    """A critique that a reward model wrote, and the reward of the conversation that ends with it. `seed` is that of all samples
    of its response, of which it is the one with its place among them; None: greedy."""

    text: str
    reward: float
    finish_reason: str
    seed: int | None = None


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
    if critique == "written":
        for index, critiques in critiques_each(engine, examples, indices, HowToCriticise(most=max_new_tokens)):
            yield index, with_written(examples.records[index], critiques)[0]
        return
    for here in batched(indices, READ_AT_ONCE):
        task = "uncritiqued" if critique == "none" else "critique"
        yield from zip(here, _score(engine, Subset(examples, here), task), strict=True)


def with_written(record: RankedRecord, critiques: Sequence[Sequence[Critique]]) -> tuple[RankedRecord, list[int]]:
    """(the record with the one critique of each response and its reward, the responses whose critiques were cut off)."""
    pairs = zip(record.responses, critiques, strict=True)
    made = [dataclasses.replace(response, critique=one.text, reward=one.reward) for response, (one,) in pairs]
    return record.replace_responses(made), [place for place, (one,) in enumerate(critiques) if one.finish_reason == "length"]


def critiques_each(
    engine: Engine, examples, indices: Sequence[int], how: HowToCriticise
) -> Iterator[tuple[int, list[list[Critique]]]]:
    """Yield (index, critiques of each of its responses) of these examples as they are finished.

    UserError that names record and response if a reward is not finite.
    """
    for here in batched(indices, WRITTEN_AT_ONCE):
        yield from ((here[place], critiques) for place, critiques in _write(engine, Subset(examples, here), how))


def _score(engine: Engine, examples, task: str) -> list[RankedRecord]:
    found = engine.score_responses(examples, task)
    return [_with_rewards(record, each["rewards"]) for record, each in zip(examples.records, found, strict=True)]


def _write(engine: Engine, examples, how: HowToCriticise) -> Iterator[tuple[int, list[list[Critique]]]]:
    """Yield (index, critiques of each response) that the model writes, with the rewards of the conversations they end.

    A reward is read where its critique was written, from the keys that are there. It is that of the critique's text, so that it
    can be computed again from the text: where the tokenizer splits the text otherwise than the model wrote it, the branch is
    fed again from there on. Critiques for whose text the branch has no room then are scored at the end, by a pass over rows.
    """
    prompts = CritiquePrompts(examples, how)
    asked = engine.asked(how.most, sampling=how.sampling, samples=how.count, rewarded=critique_conversation(engine))
    written: dict[int, dict[int, list[Written]]] = {}
    apart: dict[int, list[list[Critique]]] = {}
    for number, texts in engine.write_each(prompts, asked, "writing critiques"):
        index, response = prompts.where(number)
        record, of_record = examples.records[index], written.setdefault(index, {})
        of_record[response] = texts
        if len(of_record) < len(record.responses):
            continue
        pairs = ((response, of_record[place]) for place, response in enumerate(record.responses))
        critiques = [
            [Critique(engine.decode(text.tokens), text.reward, text.reason, how.seed_of(record, response)) for text in texts]
            for response, texts in pairs
        ]
        del written[index]
        if any(one.reward is None for each in critiques for one in each):
            apart[index] = critiques
        else:
            means = [np.mean([one.reward for one in each]) for each in critiques]
            all_finite(np.asarray(means), record, "reward")
            yield index, critiques
    if apart:
        yield from _score_apart(engine, examples, apart)


def _score_apart(
    engine: Engine, examples, apart: Mapping[int, list[list[Critique]]]
) -> Iterator[tuple[int, list[list[Critique]]]]:
    """Yield (index, critiques) with the rewards that a pass over rows gives them. A row holds one critique of each response, as
    many as are checked to fit."""
    samples = [(index, sample) for index in sorted(apart) for sample in range(len(apart[index][0]))]
    records = [_with_critiques(examples.records[index], [each[sample] for each in apart[index]]) for index, sample in samples]
    overlaid = OverlaidExamples(Subset(examples, [index for index, _ in samples]), records)
    scored = dict(zip(samples, _score(engine, overlaid, "critique"), strict=True))
    for index, critiques in sorted(apart.items()):
        yield (
            index,
            [
                [
                    dataclasses.replace(one, reward=scored[index, sample].responses[place].reward)
                    for sample, one in enumerate(each)
                ]
                for place, each in enumerate(critiques)
            ],
        )


def _with_critiques(record: RankedRecord, critiques: Sequence[Critique]) -> RankedRecord:
    pairs = zip(record.responses, critiques, strict=True)
    return record.replace_responses([dataclasses.replace(response, critique=one.text) for response, one in pairs])


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
    """One prompt per response of every example; media are read on access, once for neighbouring responses."""

    def __init__(self, examples, how: HowToCriticise):
        self._examples, self._how = examples, how
        self._last: tuple[int, Example] | None = None  # the example that was read last
        self._where = [(i, k) for i, record in enumerate(examples.records) for k in range(len(record.responses))]

    def __len__(self) -> int:
        return len(self._where)

    def where(self, number: int) -> tuple[int, int]:
        """(index of the example, index of the response) of a prompt."""
        return self._where[number]

    def __getitem__(self, number: int) -> Prompt:
        i, k = self._where[number]
        if self._last is None or self._last[0] != i:
            self._last = i, self._examples[i]
        record = self._examples.records[i]
        response = record.responses[k]
        return Prompt(self._last[1], response, self._how.seed_of(record, response))
