"""The `mmrlhf report` verb."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mmrlhf_jax.errors import UserError, of_option
from mmrlhf_jax.files import check_can_be_written, exists, is_remote, write_atomically
from mmrlhf_jax.progress import say
from mmrlhf_jax.suite import published as paper
from mmrlhf_jax.suite import run_directory
from mmrlhf_jax.suite.dimensions import Suite
from mmrlhf_jax.suite.figures import read_run
from mmrlhf_jax.suite.mm_rlhf import MM_RLHF
from mmrlhf_jax.suite.report.page import Shown, names_of, page_of
from mmrlhf_jax.suite.results import tasks_in
from mmrlhf_jax.suite.stored_suite import read_suite

NO_ONE = "none"


def report(directories: Sequence[str], out: str, published: str | None) -> None:
    with of_option("--out"):
        check_can_be_written(out)
    _refuse_repetition(directories)
    evaluations, trainings = [], []
    for each in directories:
        (evaluations if _is_evaluation(epath.Path(each)) else trainings).append(epath.Path(each))
    if not evaluations:
        raise UserError(
            f"{', '.join(directories)}: a training run, whose page is the report.html in it; give an evaluation before it, the"
            " --out of `mmrlhf eval benchmarks`"
        )
    suite = _suite_of(evaluations)
    beside = _published(suite, published)
    runs = [Shown(each, read_run(each, suite)) for each in evaluations]
    for each in runs:
        if not each.run.results:
            raise UserError(f"{each.directory}: none of its results are of {suite.title}")
    page = page_of(suite, runs, _trainings(trainings), beside, _notes(beside))
    write_atomically(out, page.encode("utf-8", "replace"))
    say(f"Wrote {out}: {_compared(names_of(runs))}.")


def _compared(names: Sequence[str]) -> str:
    """Which models are on a page, and in which place."""
    model, *base_and_others = names
    if not base_and_others:
        return model
    base, *others = base_and_others
    return f"{model} against {base}" + (f", beside {', '.join(others)}" if others else "")


def _refuse_repetition(directories: Sequence[str]) -> None:
    """UserError for a directory that is given twice, also by another path."""
    places: dict[str, str] = {}
    for each in directories:
        place = each.rstrip("/") if is_remote(each) else os.path.realpath(each)
        if place in places:
            raise UserError(f"{each}: is the same directory as {places[place]}; give every directory once")
        places[place] = each


def _is_evaluation(directory: epath.Path) -> bool:
    """Whether a directory has results; otherwise it is a run of training. UserError if it is neither."""
    if exists(directory) and not directory.is_dir():
        raise UserError(f"{directory}: is a file; give the directory of an evaluation or of a run of training")
    if tasks_in(directory):
        return True
    if exists(directory / "config.yaml"):
        return False
    if not exists(directory):
        raise UserError(f"{directory}: no such directory")
    if exists(directory / run_directory.FILE):
        raise UserError(f"{directory}: an evaluation without results yet; give its command again, which goes on with it")
    if exists(directory / "figures.json"):
        raise UserError(f"{directory}: an evaluation of a reward model, whose page is the report.html that lies in it")
    raise UserError(
        f"{directory}: neither an evaluation with results (of `mmrlhf eval benchmarks` or `safety-bench`) nor a run of training"
        " (it has no config.yaml)"
    )


def _suite_of(evaluations: Sequence[epath.Path]) -> Suite:
    suite = read_suite(evaluations[0])
    for each in evaluations[1:]:
        if read_suite(each) != suite:
            raise UserError(f"{each}: is of other benchmarks than {evaluations[0]}; they have no page in common")
    return suite


def _published(suite: Suite, model: str | None) -> Mapping[str, Mapping[str, float]]:
    """The figures of a published model before and after alignment, by the names of both. UserError for another model."""
    if suite != MM_RLHF:
        if model not in (None, NO_ONE):
            raise UserError(f"--published {model}: the paper has no figures of {suite.title}")
        return {}
    model = paper.BASE if model is None else model
    if model == NO_ONE:
        return {}
    if model not in paper.MODELS:
        raise UserError(f"--published {model}: choose {', '.join(paper.MODELS)} or {NO_ONE}")
    return {name: paper.FIGURES[name] for name in (model, f"{model}{paper.ALIGNED}")}


def _notes(published: Mapping[str, Any]) -> list[str]:
    """What there is to know of published figures, if there are any on a page."""
    if not published:
        return []
    cells = [
        f"{MM_RLHF.axis(axis).title} of {model}: {_prints(axis, model)}; {note}"
        for (axis, model), note in paper.UNEXPLAINED.items()
        if model in published
    ]
    others = f" In these cells the paper prints other means than its rows give: {'. '.join(cells)}." if cells else ""
    return [
        f"Published figures are those of {paper.SOURCE}; their means are computed from its rows by the same rule.{others} The"
        " authors measured with their fork of lmms-eval and with GPT-4o as a judge: another judge, or another version of the"
        " harness, gives other figures."
    ]


def _prints(axis: str, model: str) -> str:
    return ", ".join(f"{place} prints {mean}" for place, mean in paper.printed(axis, model).items())


def _trainings(directories: Sequence[epath.Path]) -> list:
    if not directories:
        return []
    from mmrlhf_jax.training.shown import shown_run

    return [shown_run(each) for each in directories]
