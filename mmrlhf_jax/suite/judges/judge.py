"""Judges: a model behind an endpoint of OpenAI's protocol, which `mmrlhf serve` has as well, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Protocol

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.endpoint import Endpoint, Text
from mmrlhf_jax.suite.judges.question import COMPLETIONS, Question, ask

KEY = "MMRLHF_JUDGE_KEY"  # the environment variable with the key of a judge's server
CONCURRENCY, TIMEOUT = 32, 600.0
NO_JUDGE = "no judge was given (--judge)"
NONE = "none"  # its name


class Judge(Protocol):
    """Who reads answers. `name` is stored with every verdict; None: not known before `check`."""

    name: str | None

    def check(self, sample: Question | None = None) -> None:
        """Make one call, with this question if there is one. UserError if it fails: what is wrong, and what to do."""
        ...

    def replies(self, questions: Iterable[Question]) -> Iterator[tuple[int, Text]]:
        """Yield (number of a question, what was replied, or the error in its place) as they come.

        UserError for what concerns every question.
        """
        ...


class NoJudge:
    """Nobody: what needs a judge is left for later. `name` is of one whose verdicts are stored, which count."""

    def __init__(self, name: str = NONE):
        self.name = name

    def check(self, sample: Question | None = None) -> None:
        pass

    def replies(self, questions: Iterable[Question]) -> Iterator[tuple[int, Text]]:
        for number, _ in enumerate(questions):
            yield number, Text(error=NO_JUDGE)


class EndpointJudge:
    """A model at an address. `model` names it where the server has several."""

    def __init__(self, url: str, model: str | None = None, *, concurrency: int = CONCURRENCY, timeout: float = TIMEOUT):
        self._endpoint = Endpoint(url, model, concurrency=concurrency, timeout=timeout, key_from=KEY)

    @property
    def name(self) -> str | None:
        return self._endpoint.model

    @property
    def url(self) -> str:
        return self._endpoint.url

    def check(self, sample: Question | None = None) -> None:
        where = self._endpoint.url
        sample = sample or ask("probe", "Please answer 'Yes.' or 'No.'. Is water wet?", 20)
        try:
            if self._endpoint.model is None:
                asyncio.run(self._endpoint.check())
            else:  # not every server that judges has a list of its models
                self._endpoint.say_if_unencrypted()
            text = self._endpoint.first(sample)
        except UserError as error:
            raise UserError(f"the judge cannot be asked: {error}") from None
        if text.error is not None:
            advice = ""
            if sample.path == COMPLETIONS:
                advice = f" (a classifier must be served with {COMPLETIONS}, as vLLM does)"
            raise UserError(f"judge {self.name} at {where} does not answer a test question: {text.error}{advice}")
        if not text.text.strip():
            raise UserError(f"judge {self.name} at {where} writes nothing to a test question; choose another model")

    def replies(self, questions: Iterable[Question]) -> Iterator[tuple[int, Text]]:
        return self._endpoint.texts(questions)
