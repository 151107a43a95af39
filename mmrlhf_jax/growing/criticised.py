"""A critic's critiques and rewards of answers, one line of a journal per prompt."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.finite import is_finite
from mmrlhf_jax.inference import critic
from mmrlhf_jax.inference.answerable import sound_and_refused
from mmrlhf_jax.inference.critic import Critique, HowToCriticise
from mmrlhf_jax.inference.engine import Engine, Prompt, batched
from mmrlhf_jax.records import RankedRecord

AT_ONCE = 2048  # records whose critiques are written before the next ones are tokenised

Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Judging:
    """What `how` leaves open: `count` 0 computes a reward without any critique."""

    count: int
    most: int
    temperature: float
    seed: int

    @property
    def how(self) -> HowToCriticise:
        return HowToCriticise(max(self.count, 1), self.most, self.temperature, self.seed)

    def is_line(self, record: RankedRecord, line: Any) -> bool:
        """Whether a stored line has the rewards of this record's responses, or the reason why it has none."""
        if line["id"] != record.id or "error" in line:
            return line["id"] == record.id
        digests = [text_digest(response.text) for response in record.responses]
        scored = line["responses"]
        rewarded = all(is_finite(each["reward"]) and len(each["critiques"]) == self.count for each in scored)
        return rewarded and [each["digest"] for each in scored] == digests


def judged(engine: Engine, examples, indices: Sequence[int], judging: Judging) -> Iterator[tuple[int, Line]]:
    """Yield (index, line) of these examples as they are finished. The line of a record that the critic cannot read, because it
    is too long, has the reason instead of rewards. UserError for a reward that is not finite."""
    asked = engine.asked(judging.most)
    read = lambda index: [Prompt(examples[index], response) for response in examples.records[index].responses]
    for here in batched(indices, AT_ONCE):
        sound, refused = sound_and_refused(engine, read, here, asked)
        for index, reason in refused.items():
            yield index, {"id": examples.records[index].id, "responses": [], "error": reason}
        for index, critiques in _rewards(engine, examples, sound, judging):
            record = examples.records[index]
            pairs = zip(record.responses, critiques, strict=True)
            scored = [score_line(response.text, each, judging.count) for response, each in pairs]
            yield index, {"id": record.id, "template": engine.template, "responses": scored}


def _rewards(engine: Engine, examples, indices: Sequence[int], judging: Judging) -> Iterator[tuple[int, list[list[Critique]]]]:
    if judging.count:
        yield from critic.critiques_each(engine, examples, indices, judging.how)
        return
    for index, record in critic.score_each(engine, examples, indices, critique="none"):
        yield index, [[Critique("", response.reward, "stop")] for response in record.responses]


def score_line(text: str, critiques: Sequence[Critique], count: int) -> Line:
    """What a line of scores.jsonl has of a response."""
    rewards = [one.reward for one in critiques]
    return {
        "digest": text_digest(text),
        "reward": statistics.fmean(rewards),
        "std": statistics.stdev(rewards) if len(rewards) > 1 else None,
        "critiques": [{k: v for k, v in dataclasses.asdict(one).items() if v is not None} for one in critiques[:count]],
    }
