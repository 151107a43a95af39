"""The stored answers of tasks are scored: each task's results are a file, and a task that fails ends no other one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists, read_bytes, write_atomically
from mmrlhf_jax.progress import counted, say
from mmrlhf_jax.suite import results
from mmrlhf_jax.suite.answering import Finished
from mmrlhf_jax.suite.answers import Answered, document_of
from mmrlhf_jax.suite.judges.assignment import JudgeAssignment
from mmrlhf_jax.suite.judges.judging import NO_JUDGE, NO_JUDGE_OF_ATTACKS, Judging
from mmrlhf_jax.suite.judges.verdicts import Verdicts, verdicts_path
from mmrlhf_jax.suite.reasons import NOT_ANSWERED, OTHER_DOCUMENT, OTHER_REQUEST
from mmrlhf_jax.suite.results import Figure, Results
from mmrlhf_jax.suite.task import GO_ON, Task, TaskFailed

FOLDER = "scored"  # in a run's directory: of what the results were made
UNSOUND = "its results are not sound"
WITHOUT_JUDGE = f"{NO_JUDGE}; the answers are kept"
NO_FIGURE = "no task has a figure; the reasons are above"


class Scorer(Protocol):
    """What makes results of answers."""

    def score(self, task: Task, answered: Answered, judging: Judging) -> Results:
        """The results of a task. TaskFailed if there can be none."""
        ...

    def settings(self, task: Task) -> Mapping[str, Any]:
        """What answers and figures of a task depend on besides model, documents and judge."""
        ...

    def metrics_of(self, task: Task) -> str:
        """Whose metrics these are, with the version."""
        ...


class AnsweredTasks(Protocol):
    """What was answered of tasks (`Answering`)."""

    def finished(self, task: Task) -> Sequence[Finished]:
        """What each host has done of a task."""
        ...

    def answered(self, task: Task) -> Answered:
        """What all of them have answered."""
        ...

    def forget(self, task: Task) -> None:
        """Let the documents of a task be asked for again by the next command."""
        ...


def has_figures(directory: epath.PathLike, tasks: Sequence[Task]) -> bool:
    """Whether a run has a figure of one of these tasks at least, or lacks them only because nobody judges yet."""
    waiting = []
    for task in tasks:
        try:
            found = results.read(directory, task.name)
        except UserError:  # nothing could be scored, and nothing was before
            waiting.append(False)
            continue
        if any(figure.value is not None for figure in found.figures.values()):
            return True
        waiting.append(not found.coverage.missing.keys().isdisjoint({NO_JUDGE, NO_JUDGE_OF_ATTACKS, WITHOUT_JUDGE}))
    return all(waiting)


class Scoring:
    """A run's directory whose answers are scored. `judges` says who judges."""

    def __init__(self, directory: epath.PathLike, scorer: Scorer, judges: JudgeAssignment, answered: AnsweredTasks):
        self._directory, self._scorer, self._judges, self._answered = epath.Path(directory), scorer, judges, answered

    def run(self, tasks: Sequence[Task]) -> None:
        """Score the tasks whose results are not those of the answers that are there now. Where nothing can be scored now, or
        less than before, the figures of an earlier command stay, which is said."""
        for task in tasks:
            answered = self._answered.answered(task)
            made_of = self._made_of(task, answered)
            if self._is_scored(task, made_of):
                continue
            is_last = task is tasks[-1]
            found = self._results(task, answered, is_last=is_last)
            self._forget_others(task, found)
            try:
                self._keep(task, found, made_of)
            except UserError as error:  # the task's own code gives numbers that mean nothing
                say(f"{task.name}: {UNSOUND} ({error}){'' if is_last else GO_ON}")
                self._keep(task, self._without_figures(task, answered, UNSOUND), made_of)

    def _keep(self, task: Task, found: Results, made_of: str) -> None:
        """Write a task's results, unless those of before are of more documents. UserError if they are not sound."""
        before = self._before(task)
        if before is not None and (loss := _loss(found, before)) is not None:
            say(f"{task.name}: {loss}; the figures of before, of {counted(before.coverage.scored, 'document')}, stay")
            return
        results.write(self._directory, found)
        write_atomically(self._path(task), made_of.encode())

    def _forget_others(self, task: Task, found: Results) -> None:
        """Let a task be asked for again if its data set is another one than when it was asked, which is said."""
        missing = found.coverage.missing
        if others := sum(missing.get(reason, 0) for reason in (OTHER_DOCUMENT, OTHER_REQUEST, NOT_ANSWERED)):
            say(
                f"{task.name}: {counted(others, 'document')} of the data set {'is' if others == 1 else 'are'} not what was"
                " asked, as after a new revision, or where hosts have several; the same command asks again"
            )
            self._answered.forget(task)

    def _before(self, task: Task) -> Results | None:
        """The results that are stored; None if there are none, or if their files are damaged."""
        try:
            return results.read(self._directory, task.name)
        except UserError:
            return None

    def _results(self, task: Task, answered: Answered, *, is_last: bool) -> Results:
        failed = next((each.failed for each in self._answered.finished(task) if each.failed is not None), None)
        if failed is not None:
            return self._without_figures(task, answered, failed)
        if task.judge == "always" and self._judges.name_of(task) is None:
            return self._without_figures(task, answered, WITHOUT_JUDGE)
        try:
            with Verdicts(verdicts_path(self._directory, task.name), again=self._judges.again) as verdicts:
                judges = self._judges
                judging = Judging(judges.of(task), verdicts, judges.name_of(task), judges.why_not(task))
                return self._scorer.score(task, answered, judging)
        except TaskFailed as error:
            say(f"{task.name}: {error}{'' if is_last else GO_ON}")
            return self._without_figures(task, answered, str(error))

    def _without_figures(self, task: Task, answered: Answered, reason: str) -> Results:
        """Results that say why there are none."""
        answers, unanswered = answered.answers, answered.unanswered
        documents = [document_of(name, each, missing=reason) for name, each in answers.items()]
        documents += [document_of(name, None, missing=why) for name, why in unanswered.items() if name not in answers]
        expected = max((each.documents for each in self._answered.finished(task)), default=0)
        left = {reason: expected - len(documents)} if expected > len(documents) else {}
        figures = {row.name: Figure(None, reason) for row in task.rows}
        return Results(task.name, self._scorer.metrics_of(task), dict(self._scorer.settings(task)), figures, documents, left)

    def _made_of(self, task: Task, answered: Answered) -> str:
        """A digest of what a task's results are made of."""
        answers = sorted((each.document, each.key, each.answer) for each in answered.answers.values())
        finished = [dataclasses.asdict(each) for each in self._answered.finished(task)]
        judge = None if task.judge == "none" else self._judges.name_of(task)
        content = [answers, finished, judge, self._scorer.metrics_of(task), dict(self._scorer.settings(task))]
        return text_digest(strict_json.dumps(content, sort_keys=True))

    def has_all_verdicts(self, task: Task) -> bool:
        """Whether every answer to a task has its scores, so that nothing is left to be judged."""
        found = self._current(task, self._made_of(task, self._answered.answered(task)))
        return found is not None and found.coverage.scored == found.coverage.answered

    def _is_scored(self, task: Task, made_of: str) -> bool:
        """Whether a task's results are those of what is there; not if anything is missing that may be there this time."""
        found = self._current(task, made_of)
        return found is not None and found.coverage.missing == {}

    def _current(self, task: Task, made_of: str) -> Results | None:
        """A task's results if they are those of what is there; else None."""
        path = self._path(task)
        if not (
            exists(path) and exists(results.figures_path(self._directory, task.name)) and read_bytes(path) == made_of.encode()
        ):
            return None
        try:
            return results.read(self._directory, task.name)
        except UserError:  # a kill came between the two files of results, or one is damaged
            return None

    def _path(self, task: Task) -> epath.Path:
        return self._directory / FOLDER / f"{task.name}.txt"


def _loss(found: Results, before: Results) -> str | None:
    """What would be lost if results replaced those of before, in words; None if nothing would. Those of another judge replace
    them if there are any."""
    now, then = found.coverage, before.coverage
    same = all(before.settings.get(key) in (None, found.settings.get(key)) for key in ("judge", "classifier"))
    if now.scored >= then.scored or (now.scored and not same):
        return None
    why = max(now.missing.items(), key=lambda each: each[1], default=("its data have no others", 0))[0]
    if not now.scored:
        return f"nothing can be scored now ({why})"
    return f"only {counted(now.scored, 'document')} can be scored now ({why}); choose another --out for their figures"
