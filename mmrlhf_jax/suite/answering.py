"""A policy answers the documents of tasks: one host, or several of which each has a share of every task's documents."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists, is_remote, read_bytes, read_json_object, write_atomically
from mmrlhf_jax.inference.jobs import LATE_SECONDS, POLL_SECONDS, Share
from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.progress import counted, said_if_slow, say
from mmrlhf_jax.suite import hosts, pictures
from mmrlhf_jax.suite.answers import Answer, Answered, AnswerFile, stored
from mmrlhf_jax.suite.local import HUB
from mmrlhf_jax.suite.needs.pace import Pace
from mmrlhf_jax.suite.needs.workload import seconds_of_answer
from mmrlhf_jax.suite.policy import Policy, example_of
from mmrlhf_jax.suite.request import DocumentRequest, Request
from mmrlhf_jax.suite.task import GO_ON, Task, TaskFailed

LOGS = "logs"  # in a run's directory: what the harness prints
USUAL_DOCUMENTS = 500  # of a task of which nobody knows how many it has; a guess for the progress alone


class TaskRequests(Protocol):
    """The documents of a task, while they are asked for. `documents` is how many there are, of all shares."""

    documents: int

    def requests(self) -> Iterator[DocumentRequest]:
        """Yield every document of a share. TaskFailed if they cannot be had."""
        ...


class Source(Protocol):
    """Where requests come from."""

    def ask(
        self, task: Task, answered: Mapping[str, Collection[str]], share: Share
    ) -> contextlib.AbstractContextManager[TaskRequests]:
        """The documents of a share. `answered`: document -> keys of the requests that have an answer. TaskFailed like
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
        documents: how many the task has, of all shares; 0 if that is not known, because they could not be had.
        unanswered: document -> why it has no answer.
        failed: why the task could not be run; None if it could.
        answered: document -> the key of its request, by which its answer is found.
        contents: document -> the digest of its content when it was asked, where its answer is scored by its number.
    """

    made_with: Mapping[str, Any]
    documents: int
    unanswered: Mapping[str, str]
    failed: str | None = None
    answered: Mapping[str, str] = dataclasses.field(default_factory=dict)
    contents: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Answering:
    """A host at work on a run's directory. `policy` loads what answers, when it is needed.

    `launch` names the launch of several hosts (`hosts.py`), so that what a host has finished in an earlier one is not taken for
    what it has finished now.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        tasks: Sequence[Task],
        source: Source,
        policy: Callable[[], Policy],
        share: Share,
        launch: str = "",
    ):
        self._directory, self._tasks, self._source, self._share = epath.Path(directory), tasks, source, share
        self._policy, self._launch = functools.cache(policy), launch
        self._not_opened: UserError | None = None
        self._locks: dict[int, Ownership] = {}  # of other hosts: whether one is alive is seen by looking several times

    @property
    def is_left(self) -> bool:
        """Whether something is to be asked that was not asked before. What had no answer then, or what failed, may fail again,
        so that it is not counted."""
        return not all(map(self.was_asked, self._tasks))

    def was_asked(self, task: Task) -> bool:
        """Whether all that is to be asked of a task was asked before."""
        return self._were_asked(task, [self._read(task, process) for process in range(self._share.count)])

    def run(self) -> None:
        """Answer this host's share, and as the first host wait for those of the others, or answer in the place of one that is
        gone."""
        if self._share.process == 0:
            self._answer(0)
            if self._share.count > 1:
                self._wait()
            return
        lock = hosts.owner(self._directory, self._share.process)
        try:
            lock.take()
        except UserError:
            if not hosts.is_first(self._directory, self._share.process):
                raise
            say(f"process {self._share.process}: process 0 has taken its documents over, since it came late")
            return
        with lock:
            self._answer(self._share.process)
            write_atomically(hosts.mark_path(self._directory, self._share.process), self._launch.encode())

    def finished(self, task: Task) -> list[Finished]:
        """What all hosts have done of a task, as far as they have finished it."""
        found = (self._read(task, process) for process in range(self._share.count))
        return [each for each in found if each is not None]

    def answered(self, task: Task) -> Answered:
        """What all hosts have answered of a task's documents, as they are asked now."""
        kept, finished = stored(self._directory, task.name), self.finished(task)
        keys = {document: key for each in finished for document, key in each.answered.items()}
        return Answered(
            {document: kept[document][key] for document, key in keys.items() if key in kept.get(document, {})},
            {document: reason for each in finished for document, reason in each.unanswered.items()},
            {document: digest for each in finished for document, digest in each.contents.items()},
        )

    def forget(self, task: Task) -> None:
        """Let the documents of a task be asked for again by the next command."""
        for process in range(self._share.count):
            self._path(task, process).unlink(missing_ok=True)

    def _answer(self, process: int) -> None:
        """Answer a host's share of all tasks."""
        left = [task for task in self._tasks if not self._is_done(task, process)]
        if len(left) < len(self._tasks):
            before = len(self._tasks) - len(left)
            say(f"{before} of {counted(len(self._tasks), 'task')} {'was' if before == 1 else 'were'} answered before")
        progress = Pace(
            {task.name: len(self._part(process, self._expected(task))) for task in left},
            {task.name: seconds_of_answer(task, self._source.made_with(task).get("video_frames", 0)) for task in left},
        )
        for task in left:
            progress.turn_to(task.name)
            finished = self._answer_task(task, process, progress)
            if finished.failed is not None:
                say(f"{task.name}: {finished.failed}{'' if task is left[-1] else GO_ON}")
            path = self._path(task, process)
            write_atomically(
                path, strict_json.dumps(dataclasses.asdict(finished), where=f"{path}", ensure_ascii=False).encode()
            )

    def _open(self) -> Policy:
        """The policy. UserError if it cannot be opened, which is tried once."""
        if self._not_opened is None:
            try:
                return self._policy()
            except UserError as error:
                self._not_opened = error
        raise self._not_opened

    def _answer_task(self, task: Task, process: int, progress: Pace) -> Finished:
        before = {name: list(by_key) for name, by_key in stored(self._directory, task.name).items()}
        unanswered: dict[str, str] = {}
        keys: dict[str, str] = {}
        contents: dict[str, str] = {}
        documents, made_with = self._source.expected(task) or 0, self._source.made_with(task)
        done, without = progress.done, progress.total - len(self._part(process, self._expected(task)))
        share = Share(process, self._share.count)
        try:
            with (
                self._loaded(task, before, share) as asking,
                AnswerFile(self._directory, task.name, self._share.process) as file,
            ):
                documents = asking.documents
                mine = len(self._part(process, documents))
                progress.total = without + mine
                wanted = self._wanted(asking, unanswered, keys, contents, progress)
                if (first := next(wanted, None)) is not None:
                    try:
                        policy = self._open()
                    except UserError as error:
                        was = self._read(task, process)
                        if not self._were_asked(task, [was]):
                            raise
                        say(f"{task.name}: what had no answer before is not asked again ({error})")
                        progress.total = without + progress.done - done
                        return was
                    say(f"{task.name}: {counted(mine, 'document')}")
                    for request, answered in policy.answers(itertools.chain([first], wanted), progress):
                        if answered.error is None:
                            progress.answered()
                            file.add(Answer.to(request, answered.text, answered.finish_reason))
                            keys[request.document] = request.key
                        else:
                            unanswered[request.document] = answered.error
        except TaskFailed as error:
            progress.total = without + progress.done - done  # the others are not answered
            return Finished(made_with, documents, unanswered, str(error), keys, contents)
        return Finished(made_with, documents, unanswered, answered=keys, contents=contents)

    @contextlib.contextmanager
    def _loaded(self, task: Task, before: Mapping[str, Collection[str]], share: Share) -> Iterator[TaskRequests]:
        """The documents of a share. If they take long to be loaded, that is said."""
        origin = " from the hub" if self._source.made_with(task).get("source") == HUB else ""
        logs = "" if task.own_metrics or is_remote(self._directory) else f"; see {self._directory / LOGS}"
        with contextlib.ExitStack() as stack:
            with said_if_slow(f"{task.name}: waiting for its documents{origin}{logs}"):
                asking = stack.enter_context(self._source.ask(task, before, share))
            yield asking

    def _wanted(
        self,
        asking: TaskRequests,
        unanswered: dict[str, str],
        keys: dict[str, str],
        contents: dict[str, str],
        progress: Pace,
    ) -> Iterator[Request]:
        """Yield the requests that have no answer, and keep small pictures of their media. What cannot be asked is noted in
        `unanswered`, what has an answer in `keys`, and the contents of documents in `contents`."""
        for each in asking.requests():
            if each.content is not None:
                contents[each.document] = each.content
            if each.missing is not None:
                unanswered[each.document] = each.missing
            elif each.answered:
                keys[each.document] = each.request.key
            else:
                try:
                    pictures.keep(self._directory, each.request, example_of(each.request))
                except UserError as error:
                    unanswered[each.document] = str(error)
                else:
                    yield each.request
                    continue
            progress.total -= 1

    def _expected(self, task: Task) -> int:
        """How many documents a task probably has, of all shares."""
        expected = self._source.expected(task)
        return USUAL_DOCUMENTS if expected is None else expected

    def _part(self, process: int, documents: int) -> range:
        """Which of so many documents are in a host's share."""
        return range(process, documents, self._share.count)

    # Several hosts ---------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for the other hosts; answer the share of one that is gone, or that does not come."""
        began, shown = time.monotonic(), None
        left = [n for n in range(1, self._share.count) if not all(self._is_done(task, n) for task in self._tasks)]
        while missing := [process for process in left if not self._has_finished(process)]:
            if missing != shown:
                say(f"waiting for the answers of process {', '.join(map(str, missing))}")
                shown = missing
            for process in missing:
                if exists(hosts.lock_path(self._directory, process)) or time.monotonic() - began >= LATE_SECONDS:
                    self._take_over(process)
            time.sleep(POLL_SECONDS)

    def _take_over(self, process: int) -> None:
        """Answer the share of a host that is gone. Nothing is done as long as that is not known, or if it lives."""
        lock = self._locks[process] = self._locks.get(process) or hosts.owner(self._directory, process)
        try:
            if not lock.attempt():
                return
        except UserError:  # it lives
            del self._locks[process]
            return
        with lock:
            if not self._has_finished(process):
                say(f"process {process} gives no sign of life; its documents are answered by process 0")
                self._answer(process)
                write_atomically(hosts.mark_path(self._directory, process), self._launch.encode())
        del self._locks[process]

    def _has_finished(self, process: int) -> bool:
        """Whether a host has done in this launch what it could."""
        mark = hosts.mark_path(self._directory, process)
        return exists(mark) and read_bytes(mark) == self._launch.encode()

    # What is finished ------------------------------------------------------------------------------------------------

    def _is_done(self, task: Task, process: int) -> bool:
        """Whether a share of a task need not be looked at again: it is asked the same, and every document has its answer."""
        found = self._read(task, process)
        if found is None or found.failed is not None or found.unanswered or not self._were_asked(task, [found]):
            return False
        return len(found.answered) == len(self._part(process, found.documents))

    def _were_asked(self, task: Task, shares: Sequence[Finished | None]) -> bool:
        """Whether shares of a task were asked to their end in the same way, and the answers of then are there."""
        if not all(each is not None and self._is_current(each, task) for each in shares):
            return False
        kept = stored(self._directory, task.name)
        return all(key in kept.get(document, {}) for each in shares for document, key in each.answered.items())

    def _is_current(self, found: Finished, task: Task) -> bool:
        return strict_json.loads(strict_json.dumps(self._source.made_with(task))) == found.made_with

    def _read(self, task: Task, process: int) -> Finished | None:
        path = self._path(task, process)
        try:
            return Finished(**read_json_object(path)) if exists(path) else None
        except (UserError, TypeError):  # it is damaged, or of another version: the task is looked at again
            return None

    def _path(self, task: Task, process: int) -> epath.Path:
        return self._directory / hosts.FOLDER / f"{task.name}.{process:04d}-of-{self._share.count:04d}.json"
