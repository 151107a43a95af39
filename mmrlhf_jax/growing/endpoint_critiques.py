"""Critiques from a running server, for a critic that outgrows one engine; their rewards are computed here.

Two steps with a file each: the critiques, and their rewards. So neither is lost with the other.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.data.subset import Subset
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.growing.criticised import Judging, Line, score_line
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.critic import Critique
from mmrlhf_jax.inference.endpoint_critic import EndpointCritic, first_seed
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.from_endpoint import error_of
from mmrlhf_jax.records import RankedRecord


def written(writer: EndpointCritic, examples, indices: Sequence[int]) -> Iterator[tuple[int, Line]]:
    """Yield (index, line): `critiques` has a list per response. The line of a record of which the server refuses something has
    the reason instead."""
    for index, texts in writer.texts(examples, indices):
        record = examples.records[index]
        line: Line = {"id": record.id, "digests": [text_digest(response.text) for response in record.responses]}
        if (error := error_of(itertools.chain(*texts))) is not None:
            yield index, line | {"error": error}
            continue
        made = [[{"text": text.text, "finish_reason": text.finish_reason} for text in of_response] for of_response in texts]
        yield index, line | {"critiques": made}


def is_line(judging: Judging, record: RankedRecord, line: Any) -> bool:
    """Whether a stored line has the critiques of this record's responses, or the reason why there are none."""
    digests = [text_digest(response.text) for response in record.responses]
    if line["id"] != record.id or line["digests"] != digests:
        return False
    return "error" in line or [len(each) for each in line["critiques"]] == [judging.count] * len(digests)


def rewarded(
    engine: Engine, examples, indices: Sequence[int], critiques: Sequence[Line], judging: Judging
) -> Iterator[tuple[int, Line]]:
    """Yield (index, line of scores.jsonl). `critiques` are the lines of `written`, one per example."""
    sound = []
    for index in indices:
        reason = critiques[index].get("error") or _too_long(engine, examples, index, critiques[index])
        if reason is None:
            sound.append(index)
        else:
            yield index, {"id": examples.records[index].id, "responses": [], "error": reason}
    if not sound:
        return
    overlaid = OverlaidExamples(
        Subset(examples, sound), [_with_critiques(examples.records[index], critiques[index]) for index in sound]
    )
    for place, scored in critic.score_each(engine, overlaid, range(len(sound)), critique="given"):
        index = sound[place]
        yield index, _line(engine, examples.records[index], scored, judging, critiques[index])


def _line(engine: Engine, record: RankedRecord, scored: RankedRecord, judging: Judging, line: Line) -> Line:
    """`scored` has a response for each critique of each response of `record`."""
    rewards = iter(response.reward for response in scored.responses)
    responses = []
    for response, of_response in zip(record.responses, line["critiques"], strict=True):
        seed = None if judging.count == 1 else first_seed(judging.how, record, response)
        each = [Critique(one["text"], next(rewards), one["finish_reason"], seed) for one in of_response]
        responses.append(score_line(response.text, each, judging.count))
    return {"id": record.id, "template": engine.template, "responses": responses}


def _with_critiques(record: RankedRecord, line: Line) -> RankedRecord:
    pairs = zip(record.responses, line["critiques"], strict=True)
    made = [dataclasses.replace(response, critique=one["text"]) for response, each in pairs for one in each]
    return record.replace_responses(made)


def _too_long(engine: Engine, examples, index: int, line: Line) -> str | None:
    """Why a record does not fit the engine with its critiques; None if it does."""
    encoder, record, layout = engine.encoder("critique"), _with_critiques(examples.records[index], line), examples.layout(index)
    slots = int(encoder.measure(record, layout)[0])
    if slots > engine.slots:
        return f"with its critiques it needs {slots} slots, more than the {engine.slots} of --slots"
    try:
        if too_long := encoder.beyond_positions(record, layout, slots):
            encoder.check_positions(record, too_long)
    except UserError as error:
        return str(error)
    return None
