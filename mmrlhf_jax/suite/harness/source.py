"""The harness's tasks in a run: their documents to be answered, and their answers to be scored."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.progress import Progress
from mmrlhf_jax.suite import resampling
from mmrlhf_jax.suite.answers import Answer, Answered, cluster_of, document_of
from mmrlhf_jax.suite.harness import NAME
from mmrlhf_jax.suite.harness.corrected import READINGS
from mmrlhf_jax.suite.harness.running import Harness, HarnessRequests, HarnessScoring, Scored
from mmrlhf_jax.suite.judges.harness_replies import reader_of
from mmrlhf_jax.suite.judges.judging import Judging
from mmrlhf_jax.suite.judges.loopback import Loopback
from mmrlhf_jax.suite.judges.rounds import scored
from mmrlhf_jax.suite.local import Local, expected_documents, fingerprint_of_media, source_of
from mmrlhf_jax.suite.needs import hub_cache
from mmrlhf_jax.suite.own.grader import Mode
from mmrlhf_jax.suite.reasons import BEYOND_LIMIT, NOT_ANSWERED
from mmrlhf_jax.suite.results import Document, Figure, Results
from mmrlhf_jax.suite.task import Row, Task

FORGOTTEN = "the harness asked its judge while it put scores together, and no document is known for the call"


@dataclasses.dataclass(frozen=True)
class Options:
    """How tasks are asked: whether the harness's stop strings end an answer, how many frames of a video are seen, and how many
    documents of a task there are at most (None: all)."""

    until: bool = False
    video_frames: int = 32
    limit: int | None = None


class HarnessTasks:
    """The tasks of the harness that it can score. `local`: task -> a user's own documents. Without a harness they can be
    neither asked nor scored.

    `mode`: whether answers are read as they are meant where the harness compares their whole text (`corrected.py`), or as the
    paper's code read them.
    """

    def __init__(self, harness: Harness | None, options: Options, local: Mapping[str, Local], mode: Mode = "corrected"):
        self._harness, self._options, self._local, self._mode = harness, options, local, mode

    def made_with(self, task: Task) -> dict[str, Any]:
        local = self._local.get(task.name)
        data = local.fingerprint(task) if local is not None else fingerprint_of_media(hub_cache.home(), task)
        return self._how(task) | {"limit": self._options.limit, "source": source_of(local), "data": data}

    def expected(self, task: Task) -> int | None:
        return expected_documents(task, self._local.get(task.name), self._options.limit)

    def settings(self, task: Task) -> dict[str, Any]:
        """What answers and figures of a task depend on besides model, documents and judge."""
        return self._how(task) | ({"mode": self._mode} if task.harness_task in READINGS else {})

    def _how(self, task: Task) -> dict[str, Any]:
        """How a request is answered."""
        found = {"max_new_tokens": task.new_tokens, "temperature": 0.0, "until": self._options.until}
        return found | ({"video_frames": self._options.video_frames} if task.media == "video" else {})

    def metrics_of(self, task: Task) -> str:
        return NAME

    def ask(
        self, task: Task, answered: Mapping[str, Collection[str]], share: Share
    ) -> contextlib.AbstractContextManager[HarnessRequests]:
        return self._harness.ask(task, self._local.get(task.name), dataclasses.asdict(self._options), answered, share)

    def score(self, task: Task, answered: Answered, judging: Judging) -> Results:
        """The harness's figures of a task. TaskFailed if there can be none."""
        answers = answered.answers
        with contextlib.ExitStack() as stack:
            environment = None
            if task.judge != "none":
                loopback = stack.enter_context(Loopback(judging, reader_of(task.harness_task)))
                environment = loopback.environment
            local, as_meant = self._local.get(task.name), self._mode == "corrected"
            asked = self._harness.score(task, local, answers, environment, answered.contents, corrected=as_meant)
            scoring = stack.enter_context(asked)
            missing = dict(answered.unanswered)
            doing, total = f"{task.name}: scoring", len(scoring.scorable)
            if task.judge == "none":
                found = _each_scored(scoring, Progress(doing, total))
            else:
                calls = max(1, int(task.judge_calls)) if task.judge == "always" else 0
                least = lambda each: calls if each.judges and each.missing is None else 0
                found = scored(loopback, scoring.scorable, str, scoring.score, doing, total, least)
            for name, one, unjudged in found:
                if reason := unjudged or one.missing:
                    missing[name] = reason
            figures = scoring.figures(missing)
            documents = _documents(task, scoring, figures, answers, missing | figures["missing"], self._options.limit)
            categories = set(scoring.categories.values())
            rows = {row.name: _figure(row, figures["rows"][row.name], documents, categories) for row in task.rows}
            if task.judge != "none" and loopback.unforeseen:
                rows = {name: Figure(None, FORGOTTEN) for name in rows}
        left_out = {} if (over := scoring.documents - len(documents)) <= 0 else {BEYOND_LIMIT: over}
        settings = self.settings(task) | ({} if task.judge == "none" else {"judge": judging.name})
        if scoring.without_subtitles is not None:  # their prompts say that there are none
            settings["documents_without_subtitles"] = scoring.without_subtitles
        return Results(task.name, NAME, settings, rows, documents, left_out)


def _documents(
    task: Task,
    scoring: HarnessScoring,
    figures: Mapping[str, Any],
    answers: Mapping[str, Answer],
    missing: Mapping[str, str],
    limit: int | None,
) -> list[Document]:
    found = []
    for name in map(str, range(scoring.documents if limit is None else min(limit, scoring.documents))):
        answer, made = answers.get(name), figures["documents"].get(name, {})
        scaled = {
            row.name: row.scaled(value) for row in task.rows if (value := made.get("values", {}).get(row.name)) is not None
        }
        first = scoring.groups.get(name, name)  # those that are scored together are drawn together, whatever they show
        found.append(
            document_of(
                name,
                answer,
                cluster=cluster_of(first, answers.get(first)),
                reference=figures["references"].get(name),
                values=scaled,
                missing=None if made else missing.get(name, NOT_ANSWERED),
                weights=made.get("weights", {}),
                group=scoring.categories.get(name),
            )
        )
    return found


def _each_scored(scoring: HarnessScoring, progress: Progress) -> Iterator[tuple[str, Scored, str | None]]:
    """Yield the same as `rounds.scored` of documents that need no judge."""
    for name in scoring.scorable:
        found = scoring.score(name)
        progress.update()
        yield name, found, None


def _figure(row: Row, found: Mapping[str, Any], documents: Sequence[Document], categories: Collection[str]) -> Figure:
    """A row's figure on the paper's scale, with the draws of the documents' values. `categories` are all of the data set."""
    if found["value"] is None:
        return Figure(None, found["missing"])
    if reason := resampling.lacking(row, documents, categories):
        return Figure(None, reason)
    return resampling.figure(row, documents, row.scaled(found["value"]))
