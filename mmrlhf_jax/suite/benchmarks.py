"""`mmrlhf eval benchmarks`: the answers of a policy and of its base to tasks, and their scores."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists, is_remote
from mmrlhf_jax.inference.jobs import Share
from mmrlhf_jax.progress import say
from mmrlhf_jax.suite import hosts, results, run_directory
from mmrlhf_jax.suite.all_tasks import AllTasks
from mmrlhf_jax.suite.answering import LOGS, Answering
from mmrlhf_jax.suite.base import compared_with, of_earlier_command, require_comparable, require_suite
from mmrlhf_jax.suite.figures import read_results
from mmrlhf_jax.suite.harness import NAME
from mmrlhf_jax.suite.harness.running import Harness
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.judges.assignment import JudgeAssignment
from mmrlhf_jax.suite.local import FILE, HUB, Local
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.model import Model
from mmrlhf_jax.suite.own.grader import Mode
from mmrlhf_jax.suite.own.registry import JAILBREAKS
from mmrlhf_jax.suite.own.tasks import OwnTasks
from mmrlhf_jax.suite.policy import Policy
from mmrlhf_jax.suite.run_directory import AGAINST
from mmrlhf_jax.suite.scoring import Scoring
from mmrlhf_jax.suite.task import Task

# What to do where a task was asked with documents of another source before.
_INSTEAD = {HUB: "give the file again by --data", FILE: "leave --data out"}
_OF_ANSWERS = ("max_new_tokens", "temperature", "until", "video_frames")  # settings of a task on which its answers depend


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be evaluated, and how. `share` is this host's part of the documents, `metrics` the mode of the tasks that have
    two."""

    tasks: Sequence[Task]
    options: Options
    local: Mapping[str, Local]
    judges: JudgeAssignment
    share: Share
    metrics: Mode = "corrected"

    @property
    def of_all_tasks(self) -> dict[str, Any]:
        """What a whole run has in common. Options of single tasks are in the settings of their results."""
        with_harness = any(not task.own_metrics for task in self.tasks)
        return {"metrics": self.metrics} | ({"harness": NAME} if with_harness else {})

    @property
    def of_all_hosts(self) -> dict[str, Any]:
        """What all hosts of a launch must have in common."""
        found = dataclasses.asdict(self.options) | {"metrics": self.metrics, "tasks": [task.name for task in self.tasks]}
        for task in self.tasks:
            local = self.local.get(task.name)
            found[f"documents of {task.name}"] = HUB if local is None else f"{FILE} of the digest {local.content(task)}"
        return found


def evaluate_against(
    model: Model,
    base: Model | epath.Path | None,
    wanted: Wanted,
    out: epath.PathLike,
    finished: Callable[[epath.Path | None], None] = lambda base: None,
) -> None:
    """Evaluate a model in the directory `out`, and then the base in the same way in AGAINST there, if that is a model and not
    the directory of a run. Everything that can be refused is, before anything is answered.

    `finished` is called by the first host when the model's run is finished, and again when that of the base is, with the
    directory of the base's run as far as it can be compared with.
    """
    directory = epath.Path(out)
    if not isinstance(base, Model | None) and os.path.abspath(base) == os.path.abspath(directory):
        raise UserError(f"--against {base}: is the run itself; give another one, or the base")
    runs = [Evaluation(model, wanted, directory)]
    if isinstance(base, Model):
        runs.append(Evaluation(base, wanted, directory / AGAINST))
    if wanted.share.process:
        for run in runs:
            launch = hosts.join(run.directory, wanted.share, wanted.of_all_hosts)
            if launch is None:
                say(f"{run.directory}: the other processes have finished this run")
            else:
                run.settle_beside()
                run.answer(launch)
        return
    with contextlib.ExitStack() as stack:
        firsts = [stack.enter_context(hosts.First(run.directory, wanted.share)) for run in runs]
        _refuse_unsound(directory, wanted.tasks)
        for run in runs:
            run.check()
        for run in runs:
            run.settle()
        wanted.judges.identify(wanted.tasks)
        if not isinstance(base, Model | None):
            require_comparable(base, wanted.tasks, runs[0].made_by(), results.tasks_in(directory))
        wanted.judges.check([task for run in runs for task in run.unjudged()])
        for run in runs:
            run.settle_judges()
        against = run_directory.settle_base(directory, runs[1].directory if isinstance(base, Model) else base)
        if base is None and against is not None:
            against = of_earlier_command(against)
        for first in firsts:
            first.open(wanted.of_all_hosts if wanted.share.count > 1 else {})
        for run, first in zip(runs, firsts, strict=True):
            run.answer(first.launch)
            finished(compared_with(against))


def _refuse_unsound(directory: epath.Path, tasks: Sequence[Task]) -> None:
    """UserError for a run of other benchmarks, and for results that belong to the table, are not sound, and are not made again
    by these tasks."""
    try:
        require_suite(directory)
    except UserError as error:
        raise UserError(f"{error}; choose another --out") from None
    again = {task.name for task in tasks}
    for name in results.tasks_in(directory):
        if name in MM_RLHF.tasks and name not in again:
            read_results(directory, MM_RLHF.tasks[name])


class Evaluation:
    """A model's run in a directory. `check`, `settle` and `settle_judges`, or on other hosts than the first one
    `settle_beside`, come before `answer`. UserError for what concerns all tasks."""

    def __init__(self, model: Model, wanted: Wanted, directory: epath.Path):
        self.directory, self._model, self._wanted = directory, model, wanted
        self._identity: dict[str, Any] = {}

    def check(self) -> None:
        """UserError for what is no model, for a server that is needed and does not answer or has another model, and for figures
        that would be replaced. Nothing is written."""
        if exists(self.directory / run_directory.FILE):
            try:
                run_directory.read(self.directory)
            except UserError as error:
                raise UserError(f"{error}; choose another --out") from None
        self._model = self._model.known(self.directory)
        self._identity = self._model.identity()
        self._refuse_replacement()
        if self._model.endpoint is not None and self._answering(self._tasks(None, self._wanted.judges)).is_left:
            self._model.served()

    def settle(self) -> None:
        """Begin the run, or go on with it."""
        how = self._wanted.of_all_tasks, self._model.given
        run_directory.settle(self.directory, self._model.title, self._identity, *how)

    def settle_beside(self) -> None:
        """Go on with a run that the first host has begun and checked."""
        self._model = self._model.known(self.directory)
        self._identity = self._model.identity()
        self.settle()

    def unjudged(self) -> list[Task]:
        """The tasks of which answers may be left to be judged."""
        judges, tasks = self._resumed()
        answering = self._answering(tasks)
        scoring = Scoring(self.directory, tasks, judges, answering)
        judged = judges.tasks_of(self._wanted.tasks)
        return [task for task in judged if not (answering.was_asked(task) and scoring.has_all_verdicts(task))]

    def made_by(self) -> Callable[[Task], tuple[str, dict[str, Any]]]:
        """Task -> (whose metrics its results will be, with which settings)."""
        judges, tasks = self._resumed()

        def of(task: Task) -> tuple[str, dict[str, Any]]:
            judge = {} if task.judge == "none" else {"judge": judges.name_of(task)}
            return tasks.metrics_of(task), {**tasks.settings(task), **judge}

        return of

    def settle_judges(self) -> None:
        """Note who judges. UserError if another judge has judged before."""
        noted = self._wanted.judges.noted(self._wanted.tasks)
        if "attack_judge" in noted:
            self._refuse_second_judge(noted["attack_judge"], noted["attack_classifier"])
        run_directory.settle_judges(self.directory, noted)

    def _refuse_second_judge(self, judge: str, classifier: bool) -> None:
        """UserError if jailbreaks that are not judged again have figures by another judge of attacks, which may be the judge of
        everything else: figures of two are not one table."""
        again = {task.name for task in self._wanted.tasks}
        for name in sorted(JAILBREAKS.keys() - again):
            try:
                settings = results.read(self.directory, name).settings
            except UserError:  # there are none, or a kill has left a part of them
                continue
            before = settings.get("judge"), settings.get("classifier")
            if before[0] is not None and before != (judge, classifier):
                how = [
                    f"{who}{' as a classifier' if as_classifier else ''}"
                    for who, as_classifier in (before, (judge, classifier))
                ]
                raise UserError(
                    f"{self.directory}: {name} is judged by {how[0]}, and would not be judged again by {how[1]}; give"
                    f" --attack-judge to all of {', '.join(JAILBREAKS)}, or choose another --out"
                )

    def answer(self, launch: str) -> None:
        """Answer this host's share; as the first host score the answers of all."""
        wanted = self._wanted
        with contextlib.ExitStack() as stack:
            harness, logs = None, None if is_remote(self.directory) else self.directory / LOGS
            if any(not task.own_metrics for task in wanted.tasks):
                harness = stack.enter_context(Harness(logs))
            judges, tasks = self._resumed(harness)
            answering = self._answering(tasks, launch)
            answering.run()
            if wanted.share.process == 0:
                Scoring(self.directory, tasks, judges, answering).run(wanted.tasks)

    def _answering(self, tasks: AllTasks, launch: str = "") -> Answering:
        return Answering(self.directory, self._wanted.tasks, tasks, self._opened, self._wanted.share, launch)

    def _resumed(self, harness: Harness | None = None) -> tuple[JudgeAssignment, AllTasks]:
        """(who judges, also by what earlier commands have noted; the tasks)."""
        judges = self._wanted.judges.resumed(run_directory.read(self.directory))
        return judges, self._tasks(harness, judges)

    def _tasks(self, harness: Harness | None, judges: JudgeAssignment) -> AllTasks:
        wanted = self._wanted
        own = OwnTasks(wanted.local, wanted.metrics, limit=wanted.options.limit, classifier=judges.classifier)
        return AllTasks(own, HarnessTasks(harness, wanted.options, wanted.local, wanted.metrics))

    def _opened(self) -> Policy:
        """The policy. What it really answers with is noted, which may be another type of numbers on another device."""
        policy = self._model.open()
        run_directory.note(self.directory, self._model.title, policy.made_with)
        return policy

    def _refuse_replacement(self) -> None:
        """UserError if figures would be replaced by those of fewer documents, or of answers that are made otherwise."""
        limit, tasks = self._wanted.options.limit, self._tasks(None, self._wanted.judges)
        answering = self._answering(tasks)
        for task in self._wanted.tasks:
            try:
                found = results.read(self.directory, task.name)
            except UserError:  # there are none, or a kill has left a part of them
                continue
            if not found.coverage.answered:
                continue
            if limit is not None and len(found.documents) > limit:
                raise UserError(
                    f"{self.directory}: has figures of {len(found.documents)} documents of {task.name}, which --limit {limit}"
                    " would replace; leave --limit out, or choose another --out"
                )
            now = tasks.made_with(task)["source"]
            for each in answering.finished(task):
                if each.made_with.get("source", now) != now:
                    raise UserError(
                        f"{self.directory}: has figures of {task.name} with the documents of {each.made_with['source']}, and"
                        f" now they would be those of {now}; {_INSTEAD[now]}, or choose another --out"
                    )
            for name, value in tasks.settings(task).items():
                if name in _OF_ANSWERS and name in found.settings and found.settings[name] != value:
                    raise UserError(
                        f"{self.directory}: {task.name} was answered with {name} {found.settings[name]}, not {value}; go on"
                        " with the same, or choose another --out"
                    )
