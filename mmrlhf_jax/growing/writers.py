"""Who writes texts for given prompts: a model here, or one at an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from mmrlhf_jax.data.digests import digest
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.inference.answerable import Prompts, sound_and_refused
from mmrlhf_jax.inference.endpoint import Endpoint, Request
from mmrlhf_jax.inference.engine import Engine, batched
from mmrlhf_jax.inference.from_endpoint import texts_of_records
from mmrlhf_jax.inference.prompts import Prompt
from mmrlhf_jax.inference.sampling import Sampling

AT_ONCE = 2048  # prompts that are tokenised before the next ones are


class Answer(NamedTuple):
    """What was written for a prompt; `error` says why there is nothing. `is_cut`: it ended because it was too long."""

    text: str = ""
    is_cut: bool = False
    error: str | None = None


class Writer(Protocol):
    """Writes texts of up to `most` tokens. `job` is what they depend on, and `origin` is who they are from."""

    most: int

    @property
    def job(self) -> str: ...

    @property
    def origin(self) -> dict[str, Any]: ...

    def answers(self, prompts: Sequence[Example]) -> Iterator[tuple[int, Answer]]:
        """Yield (number of a prompt, its answer) as they are finished. The prompts are those of the examples' records."""
        ...


class HereWriter:
    """A model that is loaded here; `name` is what the user calls it."""

    def __init__(self, engine: Engine, name: str, most: int, temperature: float = 0.0):
        self._engine, self._name, self.most, self._temperature = engine, name, most, temperature

    @property
    def job(self) -> str:
        return f"{self._engine.fingerprint} {self.most} {self._temperature}"

    @property
    def origin(self) -> dict[str, Any]:
        return {"model": self._name, "fingerprint": self._engine.fingerprint}

    def answers(self, prompts: Sequence[Example]) -> Iterator[tuple[int, Answer]]:
        engine, asked = self._engine, self._engine.asked(self.most, sampling=Sampling(temperature=self._temperature))

        def prompt(number: int) -> Prompt:
            example = prompts[number]
            return Prompt(example, seed=seed_of(example))

        for here in batched(range(len(prompts)), AT_ONCE):
            sound, refused = sound_and_refused(engine, lambda number: [prompt(number)], here, asked)
            for number, reason in refused.items():
                yield number, Answer(error=reason)
            for place, (text,) in engine.write_each(Prompts(prompt, sound), asked, "writing"):
                yield sound[place], Answer(engine.decode(text.tokens), text.reason == "length")


class EndpointWriter:
    """A model at an endpoint. UserError if it is not there."""

    def __init__(self, endpoint: Endpoint, most: int, temperature: float = 0.0):
        asyncio.run(endpoint.check())
        self._endpoint, self.most, self._temperature = endpoint, most, temperature

    @property
    def job(self) -> str:
        return f"{self._endpoint.url} {self._endpoint.model} {self.most} {self._temperature}"

    @property
    def origin(self) -> dict[str, Any]:
        return {"model": self._endpoint.model, "endpoint": self._endpoint.url}

    def answers(self, prompts: Sequence[Example]) -> Iterator[tuple[int, Answer]]:
        def requests(example: Example) -> list[Request]:
            how = dict(temperature=self._temperature, seed=seed_of(example))
            return [Request(example.record.prompt_text(), example, self.most, **how)]

        doing = f"texts from {self._endpoint.url}"
        for number, (text,) in texts_of_records(self._endpoint, prompts, range(len(prompts)), requests, doing):
            yield number, Answer(text.text, text.finish_reason == "length", text.error)


def seed_of(example: Example) -> int:
    """A seed of a prompt's own, whatever is asked beside it."""
    record = example.record
    return int(digest(record.id.encode("utf-8", "surrogatepass"), record.prompt.encode("utf-8", "surrogatepass"))[:7], 16)
