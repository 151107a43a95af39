"""The `mmrlhf eval benchmarks` verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.commands.report import report as write_page
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding import distributed
from mmrlhf_jax.suite import catalogue, listing, preview, summary, table
from mmrlhf_jax.suite.local import parse
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.task import Task

PAGE = "report.html"  # in a run's directory


def show_all(print_json: bool) -> None:
    """Print the catalogue."""
    if print_json:
        strict_json.print_figures(listing.as_json())
        return
    for line in listing.as_lines():
        print(line)


def benchmarks(
    model: Mapping[str, Any],
    against: str | None,
    names: Sequence[str],
    dimensions: Sequence[str],
    data: Sequence[str],
    judge: tuple[str | None, str | None],
    options: Mapping[str, Any],
    launch: str | None,
    out: str,
    plan: bool,
    as_json: bool,
) -> None:
    """`model` are fields of `suite.benchmarks.Model`, `options` of the harness's `Options`; `judge` is address and model."""
    tasks, local = chosen(names, dimensions), parse(data)
    if unused := sorted(local.keys() - {task.name for task in tasks}):
        raise UserError(f"--data {unused[0]}=...: this task is not among those that are run")
    where = config.load_launch(launch)
    distributed.prepare(where)  # before jax is imported
    from mmrlhf_jax.inference.jobs import Share
    from mmrlhf_jax.suite.benchmarks import Model, Wanted, evaluate_against
    from mmrlhf_jax.suite.harness.source import Options
    from mmrlhf_jax.suite.judges.judge import EndpointJudge, NoJudge

    share = Share(*distributed.apart(where, launch))
    judged_by = NoJudge() if judge[0] is None else EndpointJudge(*judge)
    needed = any(task.judge != "none" for task in tasks)
    if judge[0] is not None and needed and share.process == 0 and not plan:
        judged_by.check()
    if share.process == 0:
        for line in preview.lines(tasks, local, "none" if judge[0] is None else f"{judge[1] or 'the model'} at {judge[0]}"):
            say(line)
    if plan:
        return
    base = evaluate_against(Model(**model), against, Wanted(tasks, Options(**options), local, judged_by, share), out)
    if share.process == 0:
        show(out, base, as_json)


def show(out: str, base: epath.PathLike | None, as_json: bool) -> None:
    """Write figures and page of a run that may have a base, and print them."""
    found = summary.write_figures(out, MM_RLHF, base)
    write_page([out] if base is None else [out, str(base)], str(epath.Path(out) / PAGE), None)
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
