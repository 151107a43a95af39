"""All tasks of a run: those of the harness and those that are graded here, each asked and scored by its own."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Any

from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.suite.answering import Source, TaskRequests
from mmrlhf_jax.suite.answers import Answered
from mmrlhf_jax.suite.harness.source import HarnessTasks
from mmrlhf_jax.suite.judges.judging import Judging
from mmrlhf_jax.suite.own.tasks import OwnTasks
from mmrlhf_jax.suite.results import Results
from mmrlhf_jax.suite.task import Task


class AllTasks(Source):
    def __init__(self, own: OwnTasks, harness: HarnessTasks):
        self._own, self._harness = own, harness

    def ask(
        self, task: Task, answered: Mapping[str, Collection[str]], share: Share
    ) -> contextlib.AbstractContextManager[TaskRequests]:
        return self._of(task).ask(task, answered, share)

    def expected(self, task: Task) -> int | None:
        return self._of(task).expected(task)

    def made_with(self, task: Task) -> Mapping[str, Any]:
        return self._of(task).made_with(task)

    def settings(self, task: Task) -> Mapping[str, Any]:
        return self._of(task).settings(task)

    def metrics_of(self, task: Task) -> str:
        return self._of(task).metrics_of(task)

    def score(self, task: Task, answered: Answered, judging: Judging) -> Results:
        return self._of(task).score(task, answered, judging)

    def _of(self, task: Task) -> OwnTasks | HarnessTasks:
        return self._own if task.own_metrics else self._harness
