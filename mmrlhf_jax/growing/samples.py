"""A policy's sampled answers, one line of a journal per prompt: from an engine here, or from an endpoint."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.inference.answerable import Prompts, sound_and_refused
from mmrlhf_jax.inference.endpoint import Endpoint, Request
from mmrlhf_jax.inference.engine import Engine, batched
from mmrlhf_jax.inference.from_endpoint import SEEDS, error_of, texts_of_records
from mmrlhf_jax.inference.prompts import Prompt
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
    prompt = lambda index: Prompt(examples[index], seed=how.seed_of(examples.records[index]))
    for here in batched(indices, AT_ONCE):
        sound, refused = sound_and_refused(engine, lambda index: [prompt(index)], here, asked)
        for index, reason in refused.items():
            yield index, how.refused(examples.records[index], reason)
        for number, texts in engine.write_each(Prompts(prompt, sound), asked, "sampling answers"):
            record = examples.records[sound[number]]
            samples = [
                {
                    "text": engine.decode(each.tokens),
                    "finish_reason": each.reason,
                    "tokens": len(each.tokens),
                    "logprob": sum(each.logps),
                }
                for each in texts
            ]
            yield sound[number], {"id": record.id, "seed": how.seed_of(record), "samples": samples}


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
