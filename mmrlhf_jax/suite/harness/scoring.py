"""The harness's own scores of stored answers, document by document: its filters and its `process_results`."""

from __future__ import annotations

import argparse
import inspect
import random
from typing import Any

import numpy as np
import torch
from lmms_eval.filters.transformation import StripThinkingFilter

from mmrlhf_jax import strict_json
from mmrlhf_jax.suite.harness.channel import Channel
from mmrlhf_jax.suite.harness.content import Contents
from mmrlhf_jax.suite.harness.corrected import corrected
from mmrlhf_jax.suite.harness.figures import HarnessFigures
from mmrlhf_jax.suite.harness.groups import Groups
from mmrlhf_jax.suite.harness.irregular import is_caused_by_the_answer
from mmrlhf_jax.suite.harness.job import Job, reason_of
from mmrlhf_jax.suite.harness.loading import each_request, load, without_subtitles
from mmrlhf_jax.suite.reasons import OTHER_DOCUMENT, OTHER_REQUEST


def score(job: Job, channel: Channel) -> None:
    """Score what is asked for in commands, each of which is answered with a frame.

    `{"score": document}` -> `{"scored": document}`, with the reason in `"missing"` if it cannot be scored, and with `"judges"`:
    whether this is when the harness calls its judge, if the task always has one.
    `{"figures": {document: reason}}` -> `HarnessFigures.all` without these missing documents, and `HarnessScorer.references`.

    The program that has asked for this says which document is scored next, so that it knows during which one the harness
    calls a judge.
    """
    task = load(job)
    for seed, set_seed in ((0, random.seed), (1234, np.random.seed), (1234, torch.manual_seed)):  # those of `simple_evaluate`
        set_seed(seed)
    scorer = HarnessScorer(job, task)
    figures = HarnessFigures(job, task, scorer.noted, scorer.groups)
    started = {"documents": len(scorer.documents), "scorable": scorer.scorable, "groups": scorer.groups.first}
    started["categories"] = figures.categories(scorer.documents)
    channel.send(started | {"without_subtitles": without_subtitles(job, scorer.documents)})
    for command in channel.commands():
        if "score" in command:
            reason = scorer.score(command["score"]) or figures.judge_together(command["score"])
            judges = scorer.groups.judged_with(command["score"], scorer.noted)
            channel.send({"scored": command["score"], "judges": judges} | ({} if reason is None else {"missing": reason}))
        else:
            channel.send(figures.all(command["figures"]) | {"references": scorer.references()})


class HarnessScorer:
    """A task with the answers to its documents.

    Attributes:
        documents: all, without their pictures where the harness needs none.
        groups: those of them that are scored together.
        answers: document -> {"answer", "prompt", "media", "content"}.
        scorable: the documents that have an answer.
        noted: document -> metric and filter -> what the harness notes of it, for those that were scored.
    """

    def __init__(self, job: Job, task: Any):
        self._job, self._task = job, task
        self.documents = task.eval_docs_no_media
        self.groups = Groups(job.task, self.documents)
        task.args = argparse.Namespace(output_path=job.folder, process_with_media=False)
        self.answers = _answers(job)
        self._contents = Contents(task.eval_docs)
        numbers = sorted(int(name) for name in self.answers if int(name) < len(self.documents))
        self._instances = dict(each_request(task, iter(numbers)))
        self.scorable = [str(number) for number in numbers]
        self.noted: dict[str, dict[tuple[str, str], Any]] = {}
        self._filter()

    def _filter(self) -> None:
        """Let the harness's filters see the answers, and beside them the documents that they are answers to."""
        for number, instance in self._instances.items():
            instance.resps = [self.answers[str(number)]["answer"]]
        if not self._instances:
            return
        documents = self._task.task_docs.select(list(self._instances))
        for ensemble in self._task._filters:
            if self._task.config.auto_strip_thinking:
                ensemble.filters.insert(0, StripThinkingFilter())
            ensemble.apply(list(self._instances.values()), documents)

    def score(self, name: str) -> str | None:
        """Score a document. Returns why that was not possible; None if it was."""
        instance, document = self._instances[int(name)], self.documents[int(name)]
        found: dict[tuple[str, str], Any] = {}
        if self.answers[name]["content"] not in (None, self._contents.of(int(name))):
            return OTHER_DOCUMENT
        try:
            if self._task.config.doc_to_messages is None and self._task.doc_to_text(document) != self.answers[name]["prompt"]:
                return OTHER_REQUEST
            for used, answer in instance.filtered_resps.items():
                said = corrected(self._job.task, answer, document) if self._job.corrected else answer
                found |= {(metric, used): value for metric, value in self._processed(name, document, said).items()}
        except (Exception, SystemExit) as error:  # the task's own code
            return f"the harness cannot score it ({reason_of(error)})"
        self.noted[name] = found
        return None

    def _processed(self, name: str, document: Any, answer: str) -> dict[str, Any]:
        """What the task's own code notes of an answer, by metrics. Whatever this code raises."""
        process = inspect.unwrap(type(self._task).process_results)  # without the harness's five tries, 2 s apart
        try:
            return process(self._task, document, [answer])
        except Exception as error:  # the task's own code
            if not is_caused_by_the_answer(self._job.task, error):
                raise
            return process(self._task, self.documents[int(name)], [""])

    def references(self) -> dict[str, str | None]:
        """Document -> the right answer, as the harness names it; None where it has none."""
        return {str(number): self._reference(number) for number in range(len(self.documents))}

    def _reference(self, number: int) -> str | None:
        try:
            target = self._task.doc_to_target(self.documents[number])
        except (Exception, SystemExit):  # the task's own code
            return None
        if isinstance(target, list | tuple):
            texts = [each.get("answer") if isinstance(each, dict) else each for each in target]
            return ", ".join(dict.fromkeys(str(each) for each in texts))
        return None if target is None else str(target)


def _answers(job: Job) -> dict[str, dict[str, Any]]:
    with open(job.answers, encoding="utf-8") as file:
        rows = [strict_json.loads(line) for line in file]
    return {row["document"]: row for row in rows}
