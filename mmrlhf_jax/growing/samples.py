"""A policy's sampled answers, one line of a journal per prompt: from an engine here, or from an endpoint."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.endpoint import Endpoint, Request
from mmrlhf_jax.inference.engine import Engine, batched
from mmrlhf_jax.inference.from_endpoint import SEEDS, error_of, texts_of_records
from mmrlhf_jax.inference.prompts import Asked, Prompt, make_tree
from mmrlhf_jax.inference.sampling import Sampling
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
        found = hashlib.sha256(f"{self.sampling.seed} {record.id}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(found[:4], "big") % SEEDS

    def refused(self, record: RankedRecord, reason: str) -> Line:
        """The line of a record that has no samples."""
        return {"id": record.id, "seed": self.seed_of(record), "samples": [], "error": reason}

    def is_line(self, record: RankedRecord, line: Any) -> bool:
        """Whether a stored line has this record's samples, or the reason why it has none."""
        return line["id"] == record.id and len(line["samples"]) == (0 if "error" in line else self.samples)


def of_engine(engine: Engine, examples, indices: Sequence[int], how: HowToSample) -> Iterator[tuple[int, Line]]:
    """Yield (index, line) of these examples as they are finished. The line of a prompt that cannot be answered, because it is
    too long for the model or its media are broken, has the reason instead of samples."""
    asked = engine.asked(how.most, sampling=how.sampling, samples=how.samples)
    for here in batched(indices, AT_ONCE):
        prompts = _Prompts(examples, here, how)
        reasons = {index: refusal(engine, lambda: [prompts[number]], asked) for number, index in enumerate(here)}  # noqa: B023
        for index, reason in reasons.items():
            if reason is not None:
                yield index, how.refused(examples.records[index], reason)
        here = [index for index in here if reasons[index] is None]
        for number, texts in engine.write_each(_Prompts(examples, here, how), asked, "sampling answers"):
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


def refusal(engine: Engine, read: Callable[[], Sequence[Prompt]], asked: Asked) -> str | None:
    """Why the engine cannot answer the prompts about one example that `read` gives; None if it can."""
    try:
        prompts = read()
        example = prompts[0].example
        for data in (*example.images, *example.frames):
            decode_image(data, f"record {example.record.id!r}")
        make_tree(prompts, engine.encoder("answer"), asked)
    except UserError as error:
        return str(error)
    return None


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
    """The same from a running server. The line of a prompt that it refuses has the reason instead of samples."""
    requests = lambda example: [_request(example, how, sample) for sample in range(how.samples)]
    for index, texts in texts_of_records(endpoint, examples, indices, requests, f"answers from {endpoint.url}"):
        record = examples.records[index]
        if (error := error_of(texts)) is not None:
            yield index, how.refused(record, error)
            continue
        samples = [{"text": x.text, "finish_reason": x.finish_reason, "tokens": x.tokens} for x in texts]
        yield index, {"id": record.id, "seed": how.seed_of(record), "samples": samples}


def _request(example: Example, how: HowToSample, sample: int) -> Request:
    chosen = how.sampling
    settings = dict(temperature=chosen.temperature, top_p=chosen.top_p, top_k=chosen.top_k, min_p=chosen.min_p)
    settings["seed"] = how.seed_of(example.record) + sample
    return Request(example.record.prompt_text(), example, how.most, **settings)
