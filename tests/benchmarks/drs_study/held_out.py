"""What a policy answers to the held-out prompts, measured by the rule that knows what was drawn."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.data.overlay import OverlaidExamples
from mmrlhf_jax.inference.engine import Engine, Prompt
from mmrlhf_jax.inference.sampling import Sampling
from mmrlhf_jax.inference.unstacked import TwoForms
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.quickstart.questions import is_correct, question_from_record
from mmrlhf_jax.quickstart.scenes import objects_from_key
from mmrlhf_jax.records import Response
from tests.benchmarks.drs_study.annotators import grade_quality
from tests.benchmarks.drs_study.quality import grade

MAX_ANSWER, BATCH = 96, 64  # new tokens, and texts at a time
DRAWN = 4  # answers per prompt by which the divergence from the start is estimated
SAME = 0.01  # nats: log-probs of one answer by generation and by scoring differ less, if its tokens are the same


class HeldOut:
    """The held-out prompts, and the supervised start to which every policy is compared.

    One engine serves all policies, whose weights it gets one after the other, so that its programs are compiled once.
    """

    def __init__(self, start: Path, data: Path):
        self.examples = open_examples(data)
        self.questions = [question_from_record(record) for record in self.examples.records]
        self.objects = [objects_from_key(record.extra["scene"]) for record in self.examples.records]
        self._start = Engine.load(str(start), batch=BATCH)
        self._policy = Engine.load(str(start), batch=BATCH)
        self.start = self._answers(self._start)

    def measured(self, policy: VisionLanguage, seed: int) -> dict[str, Any]:
        """Lists with one entry per prompt: `answers`, greedy; `right`, `quality` (1 to 5), `wins` (against the start's answer:
        1, a half for equal quality, 0) and `tokens` of them; and what `_divergence` gives."""
        self._policy.model = TwoForms(policy)
        found = self._answers(self._policy)
        gaps = [a - b for a, b in zip(found["quality"], self.start["quality"], strict=True)]
        found["wins"] = [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]
        return found | self._divergence(seed)

    def _divergence(self, seed: int) -> dict[str, Any]:
        """`kl`, the mean over DRAWN answers y, drawn at temperature 1, of log π(y) − log π_start(y), whose mean over prompts
        estimates the divergence from the start; `unit`, the mean of π_start(y) / π(y), whose mean is 1 if y is drawn from π;
        `left_out`, how many answers do not count: those that were cut off at their longest, and those of tokens that the
        tokenizer would not have written, because their texts are scored as others. Where none counts, the first two are
        None."""
        prompts = [dataclasses.replace(each, seed=_seed(each.example.record.id, seed)) for each in self._prompts()]
        written = self._policy.write(
            prompts, self._policy.asked(MAX_ANSWER, sampling=Sampling(temperature=1.0), samples=DRAWN), "drawn answers"
        )
        distinct = [list(dict.fromkeys(self._policy.decode(each.tokens) for each in made)) for made in written]
        records = [
            record.replace_responses([Response(text) for text in texts])
            for record, texts in zip(self.examples.records, distinct, strict=True)
        ]
        scored = OverlaidExamples(self.examples, records)
        ours, theirs = (engine.score_responses(scored, "answer") for engine in (self._policy, self._start))
        found: dict[str, Any] = {"kl": [], "unit": [], "left_out": []}
        for texts, made, own, others in zip(distinct, written, ours, theirs, strict=True):
            scores = {text: (float(a), float(b)) for text, a, b in zip(texts, own["logps"], others["logps"], strict=True)}
            ratios = []
            for answer in made:
                ours_of, theirs_of = scores[self._policy.decode(answer.tokens)]
                if answer.reason == "stop" and abs(math.fsum(answer.logps) - ours_of) < SAME:
                    ratios.append(ours_of - theirs_of)
            found["kl"].append(float(np.mean(ratios)) if ratios else None)
            found["unit"].append(float(np.mean(np.exp(-np.array(ratios)))) if ratios else None)
            found["left_out"].append(len(made) - len(ratios))
        return found

    def _prompts(self) -> list[Prompt]:
        return [Prompt(self.examples[i]) for i in range(len(self.examples))]

    def _answers(self, engine: Engine) -> dict[str, Any]:
        written = engine.generate_tokens(self._prompts(), max_new_tokens=MAX_ANSWER)
        texts = [engine.decode(tokens) for tokens in written]
        graded = [grade(*each) for each in zip(self.questions, self.objects, texts, strict=True)]
        return {
            "answers": texts,
            "right": [float(is_correct(q, text)) for q, text in zip(self.questions, texts, strict=True)],
            "quality": [grade_quality(each) for each in graded],
            "tokens": [float(len(tokens)) for tokens in written],
        }


def _seed(record_id: str, seed: int) -> int:
    """A seed of its own for every prompt; prompts with one seed would draw by the same random numbers."""
    return random.Random(f"{seed}/{record_id}").getrandbits(31)
