"""The verbs `mmrlhf eval benchmarks` and `mmrlhf eval safety-bench`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.commands.report import report as write_page
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding import distributed
from mmrlhf_jax.suite import catalogue, listing, preview, summary, table
from mmrlhf_jax.suite.figures import Figures
from mmrlhf_jax.suite.local import parse
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.own.grader import MODES
from mmrlhf_jax.suite.task import Task

PAGE = "report.html"  # in a run's directory


def show_all(print_json: bool) -> None:
    """Print the catalogue."""
    if print_json:
        strict_json.print_figures(listing.as_json())
        return
    for line in listing.as_lines():
        print(line)


@dataclasses.dataclass(frozen=True)
class Judged:
    """Who judges: (address, model) of the judge and of that of attacks, whether the latter is HarmBench's classifier, and the
    tokens that the judge has for thinking."""

    judge: tuple[str | None, str | None] = (None, None)
    attacks: tuple[str | None, str | None] = (None, None)
    classifier: bool = False
    thinking: int = 0

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


def benchmarks(
    model: Mapping[str, Any],
    against: tuple[str | None, str | None],
    names: Sequence[str],
    dimensions: Sequence[str],
    **how: Any,
) -> None:
    """`model` are fields of `suite.model.Model`, `against` is the base's place and its name there, and `how` are options of
    `run`."""
    run(model, against, chosen(names, dimensions), **how)


def safety_bench(model: Mapping[str, Any], against: tuple[str | None, str | None], names: Sequence[str], **how: Any) -> None:
    """The same for the safety suite, or some tasks of it. UserError for a task that is not of it."""
    suite = {task.name: task for each in catalogue.SAFETY for task in each.tasks}
    wanted = [name.strip() for value in names for name in value.split(",") if name.strip()] or list(suite)
    if unknown := [name for name in wanted if name not in suite]:
        raise UserError(f"--benchmark {unknown[0]}: choose from {', '.join(suite)}")
    run(model, against, [suite[name] for name in dict.fromkeys(wanted)], **how)


def run(
    model: Mapping[str, Any],
    against: tuple[str | None, str | None],
    tasks: Sequence[Task],
    *,
    data: Sequence[str],
    judged: Judged,
    metrics: str,
    options: Mapping[str, Any],
    launch: str | None,
    out: str,
    plan: bool,
    print_json: bool,
) -> None:
    """`options` are those of the harness's `Options`."""
    local = parse(data)
    judged.check()
    if metrics not in MODES:
        raise UserError(f"--metrics {metrics}: choose {' or '.join(MODES)}")
    if unused := sorted(local.keys() - {task.name for task in tasks}):
        raise UserError(f"--data {unused[0]}=...: this task is not among those that are run")
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.inference.jobs import Share
    from mmrlhf_jax.suite.benchmarks import Wanted, base_of, evaluate_against
    from mmrlhf_jax.suite.harness.source import Options
    from mmrlhf_jax.suite.judges.judge import EndpointJudge
    from mmrlhf_jax.suite.jury import Jury
    from mmrlhf_jax.suite.model import Model

    share = Share(*distributed.apart(where, launch))
    if share.process == 0:
        for line in preview.lines(tasks, local, judged.title):
            say(line)
    if plan:
        return
    judge = None if judged.judge[0] is None else EndpointJudge(*judged.judge, judged.thinking)
    attacks = None if judged.attacks[0] is None else EndpointJudge(*judged.attacks, option="--attack-judge-model")
    policy = Model(**model)
    wanted = Wanted(tasks, Options(**options), local, Jury(judge, attacks, judged.classifier), share, metrics)
    found: list[Figures] = []
    evaluate_against(policy, base_of(policy, *against), wanted, out, lambda base: found.append(written(out, base)))
    if share.process == 0:
        show(found[-1], print_json)


def written(out: str, base: epath.PathLike | None) -> Figures:
    """The figures of a run that may have a base. They and the page are written."""
    found = summary.write_figures(out, MM_RLHF, base)
    write_page([out] if base is None else [out, str(base)], str(epath.Path(out) / PAGE), None)
    return found


def show(found: Figures, as_json: bool) -> None:
    """Print figures."""
    if as_json:
        strict_json.print_figures(summary.as_json(found))
        return
    for line in table.as_lines(found):
        print(line)


def chosen(names: Sequence[str], dimensions: Sequence[str]) -> list[Task]:
    """The tasks of benchmarks or tasks with these names, and of these dimensions; without either all of the 27 benchmarks.

    UserError for a name that there is not.
    """
    wanted = [each.strip() for value in dimensions for each in value.split(",") if each.strip()]
    there = dict.fromkeys(each.dimension for each in catalogue.BENCHMARKS)
    for name in wanted:
        if name not in there:
            raise UserError(f"--dimensions {name}: choose from {', '.join(there)}")
    found = [task for value in names for name in value.split(",") if name.strip() for task in catalogue.find(name.strip())]
    found += [task for each in catalogue.BENCHMARKS if each.dimension in wanted for task in each.tasks]
    if not names and not wanted:
        found = [task for each in catalogue.GENERAL for task in each.tasks]
    return list({task.name: task for task in found}.values())
