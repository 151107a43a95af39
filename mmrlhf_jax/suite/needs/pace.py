"""How fast tasks are answered, and when all of them will be: the measured time of those that have begun, put on the others."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mmrlhf_jax.pages.parts import duration
from mmrlhf_jax.progress import CLEAR, Progress, clock_time, counted, say

LEAST_SECONDS = 10.0  # of answers, before it is said what is projected of them


class Pace(Progress):
    """Progress over the answers of all tasks.

    Its ETA is more than an average over answers, since those of one task are a word and those of another one a page: the task
    that is being answered goes on at its measured rate, and for the tasks that come the assumed time is corrected by the ratio
    of measured and assumed time so far. The time before a task's first answer is in neither of them: documents are downloaded
    in it, a model is loaded and compiled.

    Args:
        documents: task -> how many documents are probably to be answered, in the order in which tasks are answered.
        assumed: task -> how many seconds an answer to it probably takes.
    """

    def __init__(self, documents: Mapping[str, int], assumed: Mapping[str, float]):
        super().__init__("answers of all tasks", sum(documents.values()))
        self._coming, self._assumed = dict(documents), assumed
        self._task, self._began, self._before = "", None, 0  # when its first answer was there, and how many there were then
        self._measured_before, self._assumed_before = 0.0, 0.0  # seconds of the tasks that are over
        self._said = False

    def turn_to(self, task: str) -> None:
        """The task whose documents are loaded next."""
        now = time.monotonic()
        self._measured_before, self._assumed_before = self._measured(now), self._reckoned()
        self._coming.pop(task, None)
        self._task, self._began, self._before = task, None, self.done

    def answered(self) -> None:
        """The task has an answer. From the first one on its time is measured."""
        if self._began is None:
            self._began, self._before = time.monotonic(), self.done

    def left(self, now: float) -> float | None:
        if not self._reckoned():
            return None
        ratio = self._measured(now) / self._reckoned()
        coming = ratio * sum(count * self._assumed[task] for task, count in self._coming.items())
        if (of_task := self._left_of_task(now)) is None:
            of_task = ratio * self._assumed.get(self._task, 0.0) * self._unanswered()
        return of_task + coming

    def _show(self, now: float, figures: str) -> None:
        if (of_task := self._left_of_task(now)) is not None and self.done < self.total:
            figures = f"{self._task} ETA {clock_time(of_task)}"
            if not self._said and self._spent(now) >= LEAST_SECONDS:
                self._explain(now)
        super()._show(now, figures)

    def _explain(self, now: float) -> None:
        """Say once what is projected of the first answers."""
        self._said = True
        answers, spent = counted(self._timed(), "answer"), duration(self._spent(now))
        of_task, of_all = duration(self._left_of_task(now)), duration(self.left(now))
        tasks, coming = len(self._coming), ""
        if tasks:
            coming = " The task that has not begun is reckoned by its tokens."
        if tasks > 1:
            coming = f" The {tasks} tasks that have not begun are reckoned by their tokens."
        say(
            f"{CLEAR if self.live else ''}{self._task}: {answers} took {spent}; at this rate it takes"
            f" {of_task} more, and all tasks {of_all}, without downloads and judging.{coming}"
        )

    def _left_of_task(self, now: float) -> float | None:
        """Seconds until the task is answered; None as long as that is not measured."""
        return self._spent(now) / self._timed() * self._unanswered() if self._timed() else None

    def _unanswered(self) -> int:
        """How many documents of the task have no answer."""
        return self.total - self.done - sum(self._coming.values())

    def _timed(self) -> int:
        """How many answers of the task were made in the time that is measured: those behind the first one."""
        return 0 if self._began is None else self.done - self._before

    def _spent(self, now: float) -> float:
        return 0.0 if self._began is None else now - self._began

    def _measured(self, now: float) -> float:
        """Seconds in which answers were made so far."""
        return self._measured_before + (self._spent(now) if self._timed() else 0.0)

    def _reckoned(self) -> float:
        """Seconds that were assumed for these answers."""
        return self._assumed_before + self._timed() * self._assumed.get(self._task, 0.0)
