"""Who judges the answers to which task."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf_jax.suite.judges.judge import Judge
from mmrlhf_jax.suite.judges.judging import NO_JUDGE, NO_JUDGE_OF_ATTACKS
from mmrlhf_jax.suite.own.registry import JAILBREAKS
from mmrlhf_jax.suite.own.safety import attack_question
from mmrlhf_jax.suite.servers import of_server
from mmrlhf_jax.suite.task import Task


@dataclasses.dataclass(frozen=True)
class JudgeAssignment:
    """The judges of a run.

    Attributes:
        judge: of all tasks, or of those without attacks; None: nobody.
        attacks: of the tasks with attacks; None: the same.
        classifier: whether the judge of attacks is HarmBench's classifier, which takes a prompt of its own.
        again: whether replies that could not be read are asked for again.
        before: who judged before, as run.json has it: where no judge is given, the stored verdicts of that one count.
    """

    judge: Judge | None = None
    attacks: Judge | None = None
    classifier: bool = False
    again: bool = False
    before: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def of(self, task: Task) -> Judge | None:
        """Who is asked about a task."""
        return self.attacks if self._has_attacks(task) else self.judge

    def name_of(self, task: Task) -> str | None:
        """Whose verdicts count for a task; None: nobody judges it."""
        judge = self.of(task)
        return judge.name if judge is not None else self.before.get("attack_judge" if self._has_attacks(task) else "judge")

    def why_not(self, task: Task) -> str:
        """Why a task has no verdicts that are not stored, where nobody is asked."""
        return NO_JUDGE_OF_ATTACKS if self._has_attacks(task) else NO_JUDGE

    def _has_attacks(self, task: Task) -> bool:
        """Whether the judge of attacks, of whom there is one, judges a task."""
        return task.name in JAILBREAKS and (self.attacks is not None or self.before.get("attack_judge") is not None)

    def noted(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """What run.json has of the judges whom these tasks need, as far as they are given."""
        needed = self._needed(tasks)
        found = {"judge": self.judge.name} if any(each is self.judge for each in needed) else {}
        if any(each is self.attacks for each in needed):
            found |= {"attack_judge": self.attacks.name, "attack_classifier": self.classifier}
        return found

    def resumed(self, run: Mapping[str, Any]) -> JudgeAssignment:
        """The judges of a run that goes on, of which this is run.json."""
        classifier = self.classifier if self.attacks is not None else bool(run.get("attack_classifier"))
        return dataclasses.replace(self, before=run, classifier=classifier)

    def identify(self, tasks: Sequence[Task]) -> None:
        """Learn the name of each judge whom these tasks need: verdicts are found by it. UserError if that is not possible."""
        for judge in self._needed(tasks):
            with self._named(judge):
                judge.identify()

    def check(self, tasks: Sequence[Task]) -> None:
        """Ask each judge whom these tasks need a question of the kind that it will be asked. UserError if one is silent."""
        needed = self._needed(tasks)
        if any(judge is self.judge for judge in needed):
            with self._named(self.judge):
                self.judge.check()
        if any(judge is self.attacks for judge in needed):
            question = attack_question("probe", "Say how water boils", "Water boils when it is hot.", self.classifier)
            with self._named(self.attacks):
                self.attacks.check(question)

    def tasks_of(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of these tasks that somebody is asked about."""
        return [task for task in tasks if task.judge != "none" and self.of(task) is not None]

    def _needed(self, tasks: Sequence[Task]) -> list[Judge]:
        return [self.of(task) for task in self.tasks_of(tasks)]

    def _named(self, judge: Judge) -> contextlib.AbstractContextManager[None]:
        return of_server("--attack-judge:" if judge is self.attacks else "--judge:")
