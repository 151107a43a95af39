"""The base that a model is compared with: another model, which is evaluated in the same way, or the directory of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.errors import UserError, of_option, shown
from mmrlhf_jax.files import exists, is_address
from mmrlhf_jax.progress import say
from mmrlhf_jax.suite import results, run_directory
from mmrlhf_jax.suite.figures import read_run
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.model import Model
from mmrlhf_jax.suite.results import Results
from mmrlhf_jax.suite.stored_suite import read_suite
from mmrlhf_jax.suite.task import Task

_INSTEAD = "or the model itself"  # which is evaluated in the same way


def base_of(model: Model, against: str | None, name: str | None) -> Model | epath.Path | None:
    """The base that the options name: a model, or the directory of a run. UserError for a run that nothing can be compared
    with."""
    if against is None and name is None:
        return None
    directory = None if against is None or is_address(against) else epath.Path(against)
    if directory is None or not exists(directory / run_directory.FILE):
        return model.base(against, name)
    if name is not None:
        raise UserError(f"--against-model: {directory} is the directory of a run, which has one model")
    with of_option("--against"):
        run_directory.read(directory)
        _require_results(directory)
    return directory


def _require_results(directory: epath.Path) -> None:
    """UserError for the directory of a run that nothing can be compared with."""
    if not results.tasks_in(directory):
        raise UserError(f"{directory}: a run without results yet; finish it first, or give the model itself")
    require_suite(directory)
    if not read_run(directory, MM_RLHF).results:
        raise UserError(f"{directory}: none of its results are of {MM_RLHF.title}")


def require_suite(directory: epath.Path) -> None:
    if (found := read_suite(directory)) != MM_RLHF:
        raise UserError(f"{directory}: is a run of {found.title}, not of {MM_RLHF.title}")


def of_earlier_command(against: epath.Path) -> epath.Path | None:
    """The base of an earlier command; None, which is said, if nothing can be compared with it any more."""
    try:
        _require_results(against)
    except UserError as error:
        say(f"the base of an earlier command is left out: {error}")
        return None
    say(f"compared with the base of an earlier command: {against}")
    return against


def compared_with(against: epath.Path | None) -> epath.Path | None:
    """The directory of the base's run as far as it has results. If they are not sound, that is said, and it is left out: the
    figures of the model do not depend on it."""
    if against is None or not results.tasks_in(against):
        return None
    try:
        _require_results(against)
    except UserError as error:
        say(f"the base is left out: {error}")
        return None
    return against


def require_comparable(
    base: epath.Path,
    tasks: Sequence[Task],
    made_by: Callable[[Task], tuple[str, Mapping[str, Any]]],
    before: Collection[str] = (),
) -> None:
    """UserError for the directory of a run with which none of these tasks can be compared, so that this is not said when all of
    them are answered. What of several tasks cannot be compared is only said.

    `made_by`: task -> (whose metrics its results will be, with which settings). `before`: tasks of which there are results that
    may be compared.
    """
    there = read_run(base, MM_RLHF).results
    without = ", ".join(task.name for task in tasks if task.name not in there)
    reasons: dict[str, list[str]] = {}
    for task in tasks:
        if task.name in there and (reason := _difference(there[task.name], *made_by(task))) is not None:
            reasons.setdefault(reason, []).append(task.name)
    differing = sum(map(len, reasons.values()))
    if differing < sum(task.name in there for task in tasks) or not there.keys().isdisjoint(before):
        for reason, names in reasons.items():
            say(f"--against {base}: {', '.join(names)} cannot be compared: {reason}")
        if without:
            say(f"--against {base}: has no results of {without}, which are not compared")
        return
    if not reasons:
        raise UserError(f"--against {base}: has no results of {without}; give a run that has, {_INSTEAD}")
    raise UserError(f"--against {base}: {next(iter(reasons))}, {_INSTEAD}")


def _difference(found: Results, harness: str, settings: Mapping[str, Any]) -> str | None:
    """In what stored results of a task differ from those that will be made, and what to do; None if in nothing. Settings that
    are known only when results are made are not looked at."""
    if found.harness != harness:
        return f"was scored by {found.harness}, and this run is by {harness}; give a base of the same version"
    for name, mine in settings.items():
        theirs = found.settings.get(name)
        if theirs == mine or (name == "judge" and mine is None):  # it may be judged later
            continue
        if name == "mode":
            return f"was scored with --metrics {theirs}, and this run has --metrics {mine}; give a base of the same mode"
        if name == "judge":
            before = "was not judged" if theirs is None else f"was judged by {shown(theirs)}"
            return f"{before}, and this run is judged by {shown(mine)}; give a base of the same judge"
        return f"was made with {name} {shown(theirs)}, and this run has {shown(mine)}; give a base with the same"
    return None
