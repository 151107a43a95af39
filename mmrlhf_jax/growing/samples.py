"""A policy's sampled answers, one line of a journal per prompt: from an engine here, or from an endpoint."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.endpoint import Endpoint, Request
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.records import RankedRecord

AT_ONCE = 2048  # prompts whose samples are drawn before the next ones are tokenised

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class HowToSample:
    """`samples` answers per prompt, of up to `most` tokens. Each record has random numbers of its own, from `sampling.seed` and
    its id, whatever process draws them."""

    samples: int
    most: int
    sampling: Sampling

    def seed_of(self, record: RankedRecord) -> int:
        digest = hashlib.sha256(f"{self.sampling.seed} {record.id}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def is_line(self, record: RankedRecord, line: Any) -> bool:
        """Whether a stored line has this record's samples."""
        return (line["id"], len(line["samples"])) == (record.id, self.samples)


def of_engine(engine: Engine, examples, indices: Sequence[int], how: HowToSample) -> Iterator[tuple[int, Line]]:
    """Yield (index, line) of these examples as they are finished."""
    asked = engine.asked(how.most, sampling=how.sampling, samples=how.samples)
    for start in range(0, len(indices), AT_ONCE):
        here = indices[start : start + AT_ONCE]
        prompts = _Prompts(examples, here, how)
        for number, texts in engine.write_each(prompts, asked, "sampling answers"):
            record = examples.records[here[number]]
            samples = [
                {
                    "text": engine.decode(each.tokens),
                    "finish_reason": each.reason,
                    "tokens": len(each.tokens),
                    "logprob": sum(each.logps),
                }
                for each in texts
            ]
            yield here[number], {"id": record.id, "seed": how.seed_of(record), "samples": samples}


class _Prompts(Sequence[Prompt]):
    """The prompts of examples; media are read on access."""

    def __init__(self, examples, indices: Sequence[int], how: HowToSample):
        self._examples, self._indices, self._how = examples, indices, how

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> Prompt:
        example = self._examples[self._indices[number]]
        return Prompt(example, seed=self._how.seed_of(example.record))


def of_endpoint(endpoint: Endpoint, examples, indices: Sequence[int], how: HowToSample) -> Iterator[tuple[int, Line]]:
    """The same from a running server. A prompt that it refuses is left out, and said; UserError if it refuses all of them."""
    refused: dict[str, int] = {}
    progress = Progress("sampling answers", len(indices))

    async def window(here: Sequence[int]) -> list[tuple[int, Line]]:
        requests = [_request(examples[index], how, sample) for index in here for sample in range(how.samples)]
        texts: dict[int, Any] = {}
        async for number, text in _written(endpoint, requests):
            texts[number] = text
        found = []
        for place, index in enumerate(here):
            own = [texts[place * how.samples + sample] for sample in range(how.samples)]
            record = examples.records[index]
            if error := next((each.error for each in own if each.error is not None), None):
                refused[record.id] = refused.get(record.id, 0) + 1
                say(f"record {record.id!r}: {error}")
                continue
            samples = [{"text": x.text, "finish_reason": x.finish_reason, "tokens": x.tokens} for x in own]
            found.append((index, {"id": record.id, "seed": how.seed_of(record), "samples": samples}))
        return found

    for start in range(0, len(indices), 64):
        here = indices[start : start + 64]
        yield from asyncio.run(window(here))
        progress.update(advance=len(here))
    if len(refused) == len(indices):
        raise UserError(f"{endpoint.url} refused all {len(indices)} prompts; the reasons are above")


def _written(endpoint: Endpoint, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Any]]:
    return endpoint.write(requests)


def _request(example, how: HowToSample, sample: int) -> Request:
    seed = (how.seed_of(example.record) + sample) % 2**31
    settings = dict(temperature=how.sampling.temperature, top_p=how.sampling.top_p, seed=seed)
    return Request(example.record.prompt_text(), example, how.most, **settings)
