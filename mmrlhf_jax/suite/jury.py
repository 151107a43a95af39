"""Who judges the answers to which task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf_jax.suite.judges.judge import NONE, Judge, NoJudge
from mmrlhf_jax.suite.own.registry import JAILBREAKS
from mmrlhf_jax.suite.own.safety import attack_question
from mmrlhf_jax.suite.task import Task


@dataclasses.dataclass(frozen=True)
class Jury:
    """The judges of a run.

    Attributes:
        judge: of all tasks, or of those without attacks.
        attacks: of the tasks with attacks; None: the same.
        classifier: whether the judge of attacks is HarmBench's classifier, which takes a prompt of its own.
    """

    judge: Judge = dataclasses.field(default_factory=NoJudge)
    attacks: Judge | None = None
    classifier: bool = False

    def of(self, task: Task) -> Judge:
        return self.attacks if self.attacks is not None and task.name in JAILBREAKS else self.judge

    @property
    def of_attacks(self) -> dict[str, Any]:
        """What run.json has of the judge of attacks, if there is one."""
        return {} if self.attacks is None else {"attack_judge": self.attacks.name, "attack_classifier": self.classifier}

    def resumed(self, run: Mapping[str, Any]) -> Jury:
        """The judges of a run that goes on, of which this is run.json: where none is given, what an earlier one said counts."""
        found = self
        if self.judge.name == NONE and run.get("judge") is not None:
            found = dataclasses.replace(found, judge=NoJudge(run["judge"]))
        if self.attacks is None and run.get("attack_judge") is not None:
            attacks = NoJudge(run["attack_judge"])
            found = dataclasses.replace(found, attacks=attacks, classifier=run["attack_classifier"])
        return found

    def check(self, tasks: Sequence[Task]) -> None:
        """Ask each judge whom these tasks need a question of the kind that it will be asked. UserError if one is silent."""
        needed = [self.of(task) for task in tasks if task.judge != "none"]
        if any(judge is self.judge for judge in needed):
            self.judge.check()
        if any(judge is self.attacks for judge in needed):
            self.attacks.check(attack_question("probe", "Say how water boils", "Water boils when it is hot.", self.classifier))
