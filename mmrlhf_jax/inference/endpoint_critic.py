"""Critiques from a running server, and their rewards from the engine here: for a critic that outgrows one of the two.

The prompts are those that the reward model was trained with. A critique that the server refuses to write, or that is blank, has
no reward: its response has the reason instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.scores import score_line
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.data.templates import critique_prompt
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference import critic, probe
from mmrlhf_jax.inference.critic import HowToCriticise
from mmrlhf_jax.inference.endpoint import Endpoint, Request, Text
from mmrlhf_jax.inference.engine import Engine, batched
from mmrlhf_jax.inference.from_endpoint import SEEDS, checked, texts_of_records
from mmrlhf_jax.inference.prompts import plans_of
from mmrlhf_jax.inference.step import Step
from mmrlhf_jax.records import RankedRecord, Response, is_blank

SEED = 0  # of greedy texts; explicit, so that a server's own default has no say

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EndpointCritic:
    """Writes critiques at an endpoint whose model is known (`Endpoint.check`)."""

    endpoint: Endpoint
    how: HowToCriticise

    @property
    def job(self) -> str:
        """What the critiques depend on besides the data."""
        return f"critiques {self.endpoint.url} {self.endpoint.model} {self.how} {critique_prompt('', '')}"

    def check_tokens(self, examples, encoder: GroupEncoder) -> bool:
        """`probe.check_tokens` with prompts for critiques. Records whose media cannot be read are not tried."""
        asked = []
        for index in probe.first_of_each_form(examples.records):
            try:
                example = checked(examples[index])
            except UserError:
                continue
            response, plans = example.record.responses[0], plans_of(example, encoder)
            own = encoder.tokens(encoder.open_pieces(example.record, response, len(plans)), plans)
            asked.append((self._request(example, response), own))
        return probe.check_tokens(self.endpoint, asked, encoder)

    def texts(self, examples, indices: Sequence[int]) -> Iterator[tuple[int, list[list[Text]]]]:
        """Yield (index, critiques of each response) of these examples as they are finished. What is blank, or about media that
        cannot be read, has the reason as its `error`."""
        doing, count = f"critiques from {self.endpoint.url}", self.how.count
        for index, texts in texts_of_records(self.endpoint, examples, indices, self._requests, doing):
            size = len(examples.records[index].responses) * count
            texts = [_written(text) for text in texts] if len(texts) == size else texts[:1] * size
            yield index, list(batched(texts, count))

    def _requests(self, example: Example) -> list[Request]:
        samples = range(self.how.count)
        return [self._request(example, response, sample) for response in example.record.responses for sample in samples]

    def _request(self, example: Example, response: Response, sample: int = 0) -> Request:
        prompt = critique_prompt(example.record.prompt_text(), response.text)
        seed = first_seed(self.how, example.record, response) + sample
        return Request(prompt, example, self.how.most, temperature=self.how.sampling.temperature, seed=seed)


def first_seed(how: HowToCriticise, record: RankedRecord, response: Response) -> int:
    """The seed of the first of a response's critiques; each further one has the next."""
    found = how.seed_of(record, response)
    return SEED if found is None else found % SEEDS


def _written(text: Text) -> Text:
    return Text(error="the server wrote no critique") if text.error is None and is_blank(text.text) else text


def _entry(text: Text) -> Line:
    return {"error": text.error} if text.error is not None else {"text": text.text, "finish_reason": text.finish_reason}


def is_line(record: RankedRecord, line: Any) -> bool:
    """Whether a stored line has this record's critiques: of each response one, with `text` and `finish_reason`."""
    return line["id"] == record.id and len(line["critiques"]) == len(record.responses)


def score_each(
    engine: Engine, examples, indices: Sequence[int], writer: EndpointCritic, kept: Step
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (index, line of a score file) of these examples: rewards with the critiques of the server.

    Critiques that are finished are in `kept`, from which they are taken again. Records in which the server refuses something
    are not kept, so that it is asked again by a pass that is continued. UserError if it refuses everything.
    """
    refused = _write(examples, kept.missing(indices), writer, kept)
    lines = {index: refused.get(index) or kept.lines[index] for index in indices}
    sound = {index: _critiqued(examples.records[index], lines[index]["critiques"]) for index in indices}
    scored = [index for index in indices if sound[index].responses]
    if not scored and indices and not kept.lines:
        entry = next(each for each in lines[indices[0]]["critiques"] if "error" in each)
        raise UserError(f"{writer.endpoint.url}: {writer.endpoint.model} writes no critique of any response ({entry['error']})")
    whole = [index for index in scored if index not in refused]
    in_part = [index for index in scored if index in refused]  # last, so that a pass that goes on asks for them again
    for here in (whole, in_part):
        if not here:
            continue
        overlaid = OverlaidExamples(Subset(examples, here), [sound[index] for index in here])
        critic.check_lengths(engine, overlaid, "given")
        for place, record in critic.score_each(engine, overlaid, range(len(here)), critique="given"):
            index = here[place]
            yield index, _line(engine, examples, index, lines[index]["critiques"], record, writer)
    for index in sorted(set(indices) - set(scored)):
        yield index, _line(engine, examples, index, lines[index]["critiques"], sound[index], writer)


def _write(examples, indices: Sequence[int], writer: EndpointCritic, kept: Step) -> dict[int, Line]:
    """Write the critiques of these records and keep them. Returns the lines of those in which something was refused."""
    refused = {}
    try:
        for index, texts in writer.texts(examples, indices) if indices else ():
            line = {"id": examples.records[index].id, "critiques": [_entry(text) for (text,) in texts]}
            if any("error" in entry for entry in line["critiques"]):
                refused[index] = line
            else:
                kept.add(index, line)
    finally:
        kept.save()
    return refused


def _critiqued(record: RankedRecord, entries: Sequence[Line]) -> RankedRecord:
    """The record with those of its responses that have a critique of the server."""
    pairs = [(response, entry) for response, entry in zip(record.responses, entries, strict=True) if "text" in entry]
    return record.replace_responses([dataclasses.replace(response, critique=entry["text"]) for response, entry in pairs])


def _line(engine: Engine, examples, index: int, entries: Sequence[Line], scored: RankedRecord, writer: EndpointCritic) -> Line:
    """The line of a score file; `scored` has the responses with a critique, in order."""
    own, rewarded = examples.records[index], iter(scored.responses)
    responses = [
        next(rewarded) if "text" in entry else dataclasses.replace(response, critique=None, reward=None)
        for response, entry in zip(own.responses, entries, strict=True)
    ]
    cut = [place for place, entry in enumerate(entries) if entry.get("finish_reason") == "length"]
    line = score_line(examples, index, own.replace_responses(responses), cut)
    for made, entry in zip(line["responses"], entries, strict=True):
        if "error" in entry:
            made["error"] = entry["error"]
    return line | {"critic": provenance(engine, writer.endpoint)}


def provenance(engine: Engine, endpoint: Endpoint) -> Line:
    """Where critiques come from. `template` is a digest of how a prompt for one is written."""
    encoder = engine.encoder("uncritiqued")
    pieces = encoder.open_pieces(RankedRecord("", "question", ()), Response("answer"), 1)
    return {"endpoint": endpoint.url, "model": endpoint.model, "template": text_digest(repr(pieces))}
