"""A policy answers the documents of tasks: one host, or several of which each has a share of every task's documents."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists, read_json_object, write_atomically
from mmrlhf_jax.inference.jobs import LATE_SECONDS, POLL_SECONDS, Share
from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.suite import pictures
from mmrlhf_jax.suite.answers import Answer, AnswerFile, stored
from mmrlhf_jax.suite.policy import Policy, example_of
from mmrlhf_jax.suite.request import Asked, Request
from mmrlhf_jax.suite.task import Task, TaskFailed

FOLDER = "shares"  # in a run's directory: what each host has finished
USUAL_DOCUMENTS = 500  # of a task of which nobody knows how many it has


class Asking(Protocol):
    """The documents of a task, while they are asked for. `documents` is how many there are, of all shares."""

    documents: int

    def requests(self) -> Iterator[Asked]:
        """Yield every document of a share. TaskFailed if they cannot be had."""
        ...


class Source(Protocol):
    """Where requests come from."""

    def ask(self, task: Task, answered: Mapping[str, str], share: Share) -> contextlib.AbstractContextManager[Asking]:
        """The documents of a share. `answered`: document -> the key of the request that has an answer. TaskFailed like
        `requests`."""
        ...

    def expected(self, task: Task) -> int | None:
        """About how many documents a task has, as far as that is known before it is loaded."""
        ...

    def made_with(self, task: Task) -> Mapping[str, Any]:
        """What the requests depend on: when it is the same, they need not be asked for again."""
        ...


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a host has done of a task.

    Attributes:
        made_with: see `Source.made_with`.
        documents: how many the task has, of all shares.
        refused: document -> why it has no answer.
        failed: why the task could not be run; None if it could.
    """

    made_with: Mapping[str, Any]
    documents: int
    refused: Mapping[str, str]
    failed: str | None = None


class Answering:
    """A host at work on a run's directory. `policy` loads what answers, when it is needed."""

    def __init__(
        self, directory: epath.PathLike, tasks: Sequence[Task], source: Source, policy: Callable[[], Policy], share: Share
    ):
        self._directory, self._tasks, self._source, self._share = epath.Path(directory), tasks, source, share
        self._policy = functools.cache(policy)
        self._lives = contextlib.ExitStack()

    def run(self) -> None:
        """Answer this host's share, and as the first host wait for those of the others, or answer in the place of one that is
        gone."""
        with self._lives:
            if self._share.count > 1:
                self._lives.enter_context(self._taken(self._share.process))
            self._answer(self._share.process)
            if self._share.process == 0 and self._share.count > 1:
                self._wait()

    def finished(self, task: Task) -> list[Finished]:
        """What all hosts have done of a task, as far as they have finished it."""
        found = (self._read(task, process) for process in range(self._share.count))
        return [each for each in found if each is not None]

    def _answer(self, process: int) -> None:
        """Answer a host's share of all tasks."""
        left = [task for task in self._tasks if not self._is_done(task, process)]
        if len(left) < len(self._tasks):
            say(f"{len(self._tasks) - len(left)} of {len(self._tasks)} tasks were answered before")
        progress = Progress("answers of all tasks", sum(self._expected(task) for task in left))
        for task in left:
            finished = self._answer_task(task, process, progress)
            if finished.failed is not None:
                say(f"{task.name}: {finished.failed}; the other tasks go on")
            path = self._path(task, process)
            write_atomically(
                path, strict_json.dumps(dataclasses.asdict(finished), where=f"{path}", ensure_ascii=False).encode()
            )

    def _answer_task(self, task: Task, process: int, progress: Progress) -> Finished:
        before = {name: answer.key for name, answer in stored(self._directory, task.name).items()}
        refused: dict[str, str] = {}
        documents, done, made_with = self._expected(task), progress.done, self._source.made_with(task)
        share = Share(process, self._share.count)
        try:
            with (
                self._source.ask(task, before, share) as asking,
                AnswerFile(self._directory, task.name, self._share.process) as file,
            ):
                documents = asking.documents
                mine = len(range(process, documents, self._share.count))
                progress.total += mine - self._expected(task)
                wanted = self._wanted(asking, refused, progress)
                if (first := next(wanted, None)) is not None:
                    say(f"{task.name}: {mine} documents")
                    for request, answered in self._policy().answers(itertools.chain([first], wanted), progress):
                        if answered.error is None:
                            file.add(Answer.to(request, answered.text, answered.finish_reason))
                        else:
                            refused[request.document] = answered.error
        except TaskFailed as error:
            progress.total -= len(range(process, documents, self._share.count)) - (progress.done - done)
            return Finished(made_with, documents, refused, str(error))
        return Finished(made_with, documents, refused)

    def _wanted(self, asking: Asking, refused: dict[str, str], progress: Progress) -> Iterator[Request]:
        """Yield the requests that have no answer, and keep small pictures of their media."""
        for each in asking.requests():
            if each.missing is not None:
                refused[each.document] = each.missing
            elif not each.answered:
                try:
                    pictures.keep(self._directory, each.request, example_of(each.request))
                except UserError as error:
                    refused[each.document] = str(error)
                else:
                    yield each.request
                    continue
            progress.total -= 1

    def _expected(self, task: Task) -> int:
        """How many documents of a task this host probably has."""
        return len(range(self._share.process, self._source.expected(task) or USUAL_DOCUMENTS, self._share.count))

    # Several hosts ---------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for the other hosts; answer the share of one that is gone, or that does not come."""
        began, shown = time.monotonic(), None
        while missing := [process for process in range(1, self._share.count) if not self._has_finished(process)]:
            if missing != shown:
                say(f"waiting for the answers of process {', '.join(map(str, missing))}")
                shown = missing
            for process in missing:
                if not exists(self._lock(process)) and time.monotonic() - began < LATE_SECONDS:
                    continue
                with contextlib.suppress(UserError):  # it lives
                    lock = self._owner(process)
                    if lock.attempt():
                        with lock:
                            say(f"process {process} gives no sign of life; its documents are answered by process 0")
                            self._answer(process)
            time.sleep(POLL_SECONDS)

    def _taken(self, process: int) -> Ownership:
        lock = self._owner(process)
        lock.take()
        return lock

    def _owner(self, process: int) -> Ownership:
        def lost(reason: str) -> None:
            say(f"{reason}; its documents may be answered twice")

        return Ownership(self._lock(process), f"the answers of process {process}", "makes them", "wait for it, or end it", lost)

    def _lock(self, process: int) -> epath.Path:
        return self._directory / FOLDER / f"process-{process:04d}"

    def _has_finished(self, process: int) -> bool:
        return all(self._is_current(self._read(task, process), task) for task in self._tasks)

    # What is finished ------------------------------------------------------------------------------------------------

    def _is_done(self, task: Task, process: int) -> bool:
        """Whether a share of a task need not be looked at again: nothing failed or was refused, and it is asked the same."""
        found = self._read(task, process)
        return self._is_current(found, task) and found.failed is None and not found.refused

    def _is_current(self, found: Finished | None, task: Task) -> bool:
        return found is not None and strict_json.loads(strict_json.dumps(self._source.made_with(task))) == found.made_with

    def _read(self, task: Task, process: int) -> Finished | None:
        path = self._path(task, process)
        return Finished(**read_json_object(path)) if exists(path) else None

    def _path(self, task: Task, process: int) -> epath.Path:
        return self._directory / FOLDER / f"{task.name}.{process:04d}-of-{self._share.count:04d}.json"
