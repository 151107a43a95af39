"""Judges: a model behind an endpoint of OpenAI's protocol, which `mmrlhf serve` has as well."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Protocol

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.inference.endpoint import Endpoint, Text
from mmrlhf_jax.suite.judges.question import COMPLETIONS, Question, single_message
from mmrlhf_jax.suite.own.replies import yes_or_no

KEY = "MMRLHF_JUDGE_KEY"  # the environment variable with the key of a judge's server
CONCURRENCY, TIMEOUT = 32, 600.0
THINKING_OPTION = "--judge-thinking"
_THOUGHTS, _THOUGHTS_END = "<think>", "</think>"


class Judge(Protocol):
    """Who reads answers. `name` is stored with every verdict; None: not known before `identify`. Where nobody judges there is
    None in the place of a judge."""

    name: str | None

    def identify(self) -> None:
        """Learn the name if it is not known; nothing is judged for that. UserError if that is not possible."""
        ...

    def check(self, sample: Question | None = None) -> None:
        """Make one call, with this question if there is one. UserError if it fails: what is wrong, and what to do."""
        ...

    def replies(self, questions: Iterable[Question]) -> Iterator[tuple[int, Text]]:
        """Yield (number of a question, what was replied, or the error in its place) as they come.

        UserError for what concerns every question.
        """
        ...


class EndpointJudge:
    """A model at an address. `model` names it where the server has several.

    `thinking`: of a model that thinks before it replies, how many tokens it has for that. Such models refuse a temperature,
    and are asked without one; thoughts that come with a reply are cut off. `option` is the command line's for its name.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        thinking: int = 0,
        *,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
        option: str = "--judge-model",
    ):
        self._endpoint = Endpoint(url, model, concurrency=concurrency, timeout=timeout, key_from=KEY, option=option)
        self._thinking, self._has_list = thinking, model is None  # not every server that judges has a list of its models

    @property
    def name(self) -> str | None:
        model = self._endpoint.model
        return model if model is None or not self._thinking else f"{model} (thinking {self._thinking})"

    @property
    def url(self) -> str:
        return self._endpoint.url

    def identify(self) -> None:
        if self._endpoint.model is None:
            try:
                asyncio.run(self._endpoint.check())
            except UserError as error:
                raise _not_asked(error) from None

    def check(self, sample: Question | None = None) -> None:
        self.identify()
        where, probed = self._endpoint.url, sample is None
        sample = sample or single_message("probe", "Please answer 'Yes.' or 'No.'. Is water wet?", 20)
        if not self._has_list:
            self._endpoint.say_if_unencrypted()
        try:
            text = self._said(self._endpoint.first(self._asked(sample)))
        except UserError as error:
            raise _not_asked(error) from None
        if text.error is not None:
            advice = ""
            if sample.path == COMPLETIONS:
                advice = f" (a classifier must be served with {COMPLETIONS}, as vLLM does)"
            raise UserError(f"judge {self.name} at {where} does not answer a test question: {text.error}{advice}")
        if not text.text.strip():
            raise UserError(f"judge {self.name} at {where} writes nothing to a test question; {self._what_to_do}")
        if probed and text.finish_reason == "length" and yes_or_no(text.text) is None:
            said = f"says neither yes nor no to a test question, but {shown(text.text)}"
            raise UserError(f"judge {self.name} at {where} {said}; {self._what_to_do}")

    @property
    def _what_to_do(self) -> str:
        """About a model that does not reply to a question in the tokens that it has."""
        more = "" if self._thinking else f", or give one that thinks first some tokens for that ({THINKING_OPTION})"
        return f"choose another model{more}"

    def replies(self, questions: Iterable[Question]) -> Iterator[tuple[int, Text]]:
        for number, text in self._endpoint.texts(map(self._asked, questions)):
            yield number, self._said(text)

    def _asked(self, question: Question) -> Question:
        """The question as this model takes it."""
        if not self._thinking or question.prompt is not None:
            return question
        options = {name: value for name, value in question.options.items() if name != "temperature"}
        if (most := options.get("max_completion_tokens")) is not None:
            options["max_completion_tokens"] = most + self._thinking
        return dataclasses.replace(question, options=options)

    def _said(self, text: Text) -> Text:
        """The reply behind the thoughts, which end with a tag if a server does not take them out. Thoughts are no reply."""
        if text.error is not None:
            return text
        _, end, reply = text.text.rpartition(_THOUGHTS_END)
        cut_off = text.finish_reason == "length" and self._thinking
        if not end and (cut_off or reply.lstrip().startswith(_THOUGHTS)):
            if not self._thinking:
                return Text(error=f"it thinks before it replies, and has no tokens for that ({THINKING_OPTION})")
            return Text(error=f"it is cut off, maybe while it thinks in {self._thinking} tokens")
        return dataclasses.replace(text, text=reply.strip() if end or self._thinking else reply)


def _not_asked(error: UserError) -> UserError:
    return UserError(f"the judge cannot be asked: {error}")
