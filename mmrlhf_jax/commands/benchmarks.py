"""The verbs `mmrlhf eval benchmarks` and `mmrlhf eval safety-bench`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Set
from typing import Any

from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.commands.report import report as write_page
from mmrlhf_jax.errors import UserError, of_option
from mmrlhf_jax.files import exists, is_address
from mmrlhf_jax.inference.endpoint import Endpoint
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding import distributed
from mmrlhf_jax.suite import catalogue, listing, run_directory, summary, table
from mmrlhf_jax.suite.figures import Figures
from mmrlhf_jax.suite.harness.source import Options
from mmrlhf_jax.suite.judges.judge import KEY as JUDGE_KEY
from mmrlhf_jax.suite.local import parse
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.model import Loading, Model
from mmrlhf_jax.suite.needs import preview, soundness
from mmrlhf_jax.suite.own.grader import MODES
from mmrlhf_jax.suite.task import Task

PAGE = "report.html"  # in a run's directory


def show_all(names: Sequence[str], dimensions: Sequence[str], print_json: bool) -> None:
    """Print the catalogue, or the benchmarks of it that are named, or that have a task of these names."""
    tasks = {task.name for task in chosen(names, dimensions)}
    found = [each for each in catalogue.BENCHMARKS if any(task.name in tasks for task in each.tasks)]
    if print_json:
        strict_json.print_figures(listing.as_json(found))
        return
    for line in listing.as_lines(found):
        print(line)


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """Who judges: (address, model) of the judge and of that of attacks, whether the latter is HarmBench's classifier, the
    tokens that the judge has for thinking, how many questions are under way at a time, and whether replies that could not be
    read are asked for again."""

    judge: tuple[str | None, str | None]
    attacks: tuple[str | None, str | None]
    classifier: bool
    thinking: int
    concurrency: int
    again: bool

    def check(self) -> None:
        """UserError for the name of a model without an address."""
        for option, (address, model) in (("--judge", self.judge), ("--attack-judge", self.attacks)):
            if model is not None and address is None:
                raise UserError(f"{option}-model is the name of a model at {option}; give its address")
        if self.thinking and self.judge[0] is None:
            raise UserError("--judge-thinking is for a judge; give its address by --judge")
        if self.classifier and self.attacks[0] is None:
            raise UserError("--attack-classifier: give the address of HarmBench's classifier by --attack-judge")

    @property
    def title(self) -> str | None:
        """Who judges, in words; None: nobody."""
        named = [f"{model or 'the model'} at {address}" for address, model in (self.judge, self.attacks) if address is not None]
        return ", attacks: ".join(named) or None


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line says.

    Attributes:
        given: the names of the options that stand there.
        policy: what answers.
        against: the base, a model or the directory of a run; None: there is none.
        against_model: the base's name at its server.
        judged: who judges.
        data: values TASK=FILE.
        metrics: the mode of the tasks that have two.
        options: how tasks are asked.
        launch: the launch file.
        out: the directory of the run.
        plan: whether it is only said what a run needs.
        print_json: whether figures are printed as JSON.
    """

    given: Set[str]
    policy: Model
    against: str | None
    against_model: str | None
    judged: JudgeOptions
    data: Sequence[str]
    metrics: str
    options: Options
    launch: str | None
    out: str | None
    plan: bool
    print_json: bool

    def asking(self, **options: Any) -> Command:
        """The same with other `Options`."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, **options))

    def check(self, tasks: Sequence[Task]) -> None:
        """UserError for options that contradict each other, or that have no effect."""
        self.judged.check()
        if self.judged.judge[0] is None and self.judged.attacks[0] is None:
            self._refuse({"judge_concurrency", "judge_again"}, "is of a judge; give its address by --judge")
        if self.metrics not in MODES:
            raise UserError(f"--metrics {self.metrics}: choose {' or '.join(MODES)}")
        self._check_policy()
        self._check_addresses()
        if unused := sorted(parse(self.data).keys() - {task.name for task in tasks}):
            raise UserError(f"--data {unused[0]}=...: this task is not among those that are run")

    def _check_policy(self) -> None:
        path, endpoint, name = self.policy.path, self.policy.endpoint, self.policy.name
        if path is not None and endpoint is not None:
            raise UserError("give one of --model and --policy-endpoint, not both")
        if name is not None and endpoint is None:
            raise UserError("--policy-model is the name of a model at --policy-endpoint; give its address")
        if self.against_model is not None and not (is_address(self.against) or (self.against is None and endpoint is not None)):
            raise UserError("--against-model is the name of a model at a server; give its address by --against")
        base_is_served = self.against is None or is_address(self.against)
        if path is not None and not is_address(self.against):
            self._refuse({"concurrency"}, "is of --policy-endpoint, and --model answers in this process")
        if endpoint is not None and base_is_served:
            names = {each.name for each in dataclasses.fields(Loading)}
            self._refuse(names, "says how a model is loaded here, and that of --policy-endpoint is on its server")

    def _check_addresses(self) -> None:
        against = self.against if is_address(self.against) else None
        (judge, _), (attacks, _) = self.judged.judge, self.judged.attacks
        for option, address, options in (
            ("--policy-endpoint", self.policy.endpoint, {}),
            ("--against", against, {}),
            ("--judge", judge, {"key_from": JUDGE_KEY}),
            ("--attack-judge", attacks, {"key_from": JUDGE_KEY}),
        ):
            if address is not None:
                with of_option(option):
                    Endpoint(address, **options)

    def check_plan(self) -> None:
        """UserError for options that `--plan` does not have."""
        self._refuse({"as_json"}, "is of a run's figures, and --plan makes none")

    def check_run(self) -> None:
        """UserError if what a run needs is lacking."""
        if self.policy.path is None and self.policy.endpoint is None:
            raise UserError(
                "give --model or --policy-endpoint, which answers; --list shows what there is, --plan what it needs"
            )
        if self.out is None:
            raise UserError("give --out, a folder for answers and figures")

    def _refuse(self, names: Set[str], why: str) -> None:
        for name in sorted(self.given & names):
            raise UserError(f"--{_SPELT.get(name, name).replace('_', '-')} {why}")


_SPELT = {"as_json": "json"}


def benchmarks(command: Command, names: Sequence[str], dimensions: Sequence[str]) -> None:
    """The benchmarks, or those that are named: what a run of them needs, or the run."""
    _plan_or_run(command, chosen(names, dimensions))


def safety_bench(command: Command, names: Sequence[str]) -> None:
    """The same for the safety suite, or some tasks of it. UserError for a task that is not of it."""
    suite = {task.name: task for each in catalogue.SAFETY for task in each.tasks}
    wanted = _separated("--benchmark", "benchmark", names) or list(suite)
    if unknown := [name for name in wanted if name not in suite]:
        raise UserError(f"--benchmark {unknown[0]}: choose from {', '.join(suite)}")
    _plan_or_run(command, [suite[name] for name in dict.fromkeys(wanted)])


def _plan_or_run(command: Command, tasks: Sequence[Task]) -> None:
    command.check(tasks)
    if command.plan:
        command.check_plan()
        if unsound := _say_needs(command, tasks):
            raise UserError(f"--data: the files of {', '.join(unsound)} cannot be used as they are; the reasons are above")
    else:
        command.check_run()
        run(command, tasks)


def _say_needs(command: Command, tasks: Sequence[Task]) -> list[str]:
    """Say what a run needs. Returns the names of the tasks whose own files cannot be used as they are."""
    options, judge, local = command.options, command.judged.title, parse(command.data)
    for line in preview.lines(tasks, local, judge, options.limit, options.video_frames):
        say(line)
    unsound = dict(soundness.problems(tasks, local))
    base = command.against or command.against_model
    if base is not None and (is_address(base) or not exists(epath.Path(base) / run_directory.FILE)):
        say("  the base (--against) answers the same, and is judged in the same way: the time is that of each of the two")
    for reason in unsound.values():
        say(f"  cannot be used as it is: {reason}")
    return list(unsound)


def run(command: Command, tasks: Sequence[Task]) -> None:
    """Evaluate the policy, and its base if there is one, and show the figures."""
    where = config.load_launch(command.launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.inference.jobs import Share
    from mmrlhf_jax.suite.base import base_of
    from mmrlhf_jax.suite.benchmarks import Wanted, evaluate_against
    from mmrlhf_jax.suite.judges.assignment import JudgeAssignment
    from mmrlhf_jax.suite.judges.judge import EndpointJudge

    share, judged = Share(*distributed.apart(where, command.launch)), command.judged
    many = dict(concurrency=judged.concurrency)
    judge = None if judged.judge[0] is None else EndpointJudge(*judged.judge, judged.thinking, **many)
    attacks = None if judged.attacks[0] is None else EndpointJudge(*judged.attacks, option="--attack-judge-model", **many)
    judges = JudgeAssignment(judge, attacks, judged.classifier, judged.again)
    if share.process == 0:
        _say_needs(command, tasks)
    wanted = Wanted(tasks, command.options, parse(command.data), judges, share, command.metrics)
    base, found = base_of(command.policy, command.against, command.against_model), []
    evaluate_against(command.policy, base, wanted, command.out, lambda base: found.append(_written(command.out, base)))
    if share.process == 0:
        show(found[-1], command.print_json)
        _require_figures(command.out, base, tasks)


class NothingWorked(UserError):
    """No task has a figure, although the command came to its end."""

    status = 1


def _require_figures(out: str, base: Model | epath.Path | None, tasks: Sequence[Task]) -> None:
    """NothingWorked if no task of the model's run has a figure, or none of its base's that was evaluated as well. Answers that
    are kept until somebody judges them are no failure."""
    from mmrlhf_jax.suite.scoring import NO_FIGURE, has_figures

    if not has_figures(out, tasks):
        raise NothingWorked(NO_FIGURE)
    if isinstance(base, Model) and not has_figures(epath.Path(out) / run_directory.AGAINST, tasks):
        raise NothingWorked(f"--against: {NO_FIGURE}")


def _written(out: str, base: epath.PathLike | None) -> Figures:
    """The figures of a run that may have a base. They and the page are written."""
    found = summary.write_figures(out, MM_RLHF, base)
    write_page([out] if base is None else [out, str(base)], str(epath.Path(out) / PAGE), None)
    return found


def show(found: Figures, as_json: bool) -> None:
    """Print figures."""
    if as_json:
        strict_json.print_figures(summary.as_json(found))
    else:
        for line in table.as_lines(found):
            print(line)


def chosen(names: Sequence[str], dimensions: Sequence[str]) -> list[Task]:
    """The tasks of benchmarks or tasks with these names, and of these dimensions; without either those of all benchmarks.

    UserError for a name that there is not.
    """
    wanted = _separated("--dimensions", "dimension", dimensions)
    there = dict.fromkeys(each.dimension for each in catalogue.BENCHMARKS)
    for name in wanted:
        if name not in there:
            raise UserError(f"--dimensions {name}: choose from {', '.join(there)}")
    found = []
    for name in _separated("--benchmark", "benchmark", names):
        with of_option("--benchmark"):
            found += catalogue.find(name)
    every = not found and not wanted
    found += [task for each in catalogue.BENCHMARKS if every or each.dimension in wanted for task in each.tasks]
    return list({task.name: task for task in found}.values())


def _separated(option: str, what: str, values: Sequence[str]) -> list[str]:
    """The names in an option's values, which may have several with commas between them. UserError for a value without any:
    without the option all are taken."""
    found = [[name.strip() for name in value.split(",") if name.strip()] for value in values]
    if not all(found):
        raise UserError(f"{option}: names no {what}; leave it out for all")
    return [name for names in found for name in names]
