"""How fast tasks are answered, and when all of them will be: the measured time of those that have begun, put on the others."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mmrlhf_jax.pages.parts import duration
from mmrlhf_jax.progress import CLEAR, Progress, clock_time, say


class Pace(Progress):
    """Progress over the answers of all tasks.

    Its ETA is more than an average over answers, since those of one task are a word and those of another one a page: the task
    that is being answered goes on at its measured rate, and for the tasks that come the assumed time is corrected by the ratio
    of measured and assumed time so far. The time in which documents are downloaded and loaded is in neither of them.

    Args:
        documents: task -> how many documents are probably to be answered, in the order in which tasks are answered.
        assumed: task -> how many seconds an answer to it probably takes.
    """

    def __init__(self, documents: Mapping[str, int], assumed: Mapping[str, float]):
        super().__init__("answers of all tasks", sum(documents.values()))
        self._coming, self._assumed = dict(documents), assumed
        self._task, self._began, self._before = "", None, 0
        self._measured_before, self._assumed_before = 0.0, 0.0  # seconds of the tasks that are over
        self._said = False

    def turn_to(self, task: str) -> None:
        """The task whose documents are loaded next."""
        now = time.monotonic()
        self._measured_before, self._assumed_before = self._measured(now), self._reckoned()
        self._coming.pop(task, None)
        self._task, self._began, self._before = task, None, self.done

    def answering(self) -> None:
        """The documents of the task are there: from now on its time is measured."""
        self._began = time.monotonic()

    def left(self, now: float) -> float:
        ratio = self._measured(now) / self._reckoned() if self._reckoned() else 0.0
        return self._left_of_task(now) + ratio * sum(count * self._assumed[task] for task, count in self._coming.items())

    def _show(self, now: float, figures: str) -> None:
        if self.done > self._before and self.done < self.total:
            figures = f"{self._task} ETA {clock_time(self._left_of_task(now))}"
            if not self._said:
                self._explain(now)
        super()._show(now, figures)

    def _explain(self, now: float) -> None:
        """Say once what is projected of the first answers."""
        self._said = True
        answers, spent = self.done - self._before, duration(self._spent(now))
        of_task, of_all = duration(self._left_of_task(now)), duration(self.left(now))
        coming = f" The {len(self._coming)} tasks that have not begun are reckoned by their tokens." if self._coming else ""
        say(
            f"{CLEAR if self.live else ''}{self._task}: the first {answers} answers took {spent}; at this rate it takes"
            f" {of_task} more, and all tasks {of_all}, without downloads and judging.{coming}"
        )

    def _left_of_task(self, now: float) -> float:
        answered = self.done - self._before
        return self._spent(now) / answered * (self.total - self.done - sum(self._coming.values())) if answered else 0.0

    def _spent(self, now: float) -> float:
        return 0.0 if self._began is None else now - self._began

    def _measured(self, now: float) -> float:
        """Seconds in which answers were made so far."""
        return self._measured_before + self._spent(now)

    def _reckoned(self) -> float:
        """Seconds that were assumed for these answers."""
        return self._assumed_before + (self.done - self._before) * self._assumed.get(self._task, 0.0)
