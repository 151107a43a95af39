"""The thread that runs the lanes: requests come in from the event loop, and events of their texts go back to it.

One thread owns the device. It takes new requests between two steps, so that they join those that are running; a text that
nobody waits for any more is cancelled before the next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mmrlhf_jax.inference.requests import Tree, Written
from mmrlhf_jax.inference.scheduler import Scheduler
from mmrlhf_jax.serving.errors import ApiError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Event:
    """What a step brought for one text of a job: the tokens since the last event."""

    branch: int  # number of the text among those of its tree
    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    top: tuple[tuple[Any, Any], ...]
    written: Written | None  # when it is finished


class Job:
    """A tree that has been handed over. Its events arrive in `events`, in the event loop that made it; None ends them if the
    worker has died."""

    def __init__(self, tree: Tree, loop: asyncio.AbstractEventLoop):
        self.tree, self._loop = tree, loop
        self.events: asyncio.Queue[Event | None] = asyncio.Queue()
        self.written: list[Written] = []
        self.submitted = self.begun = time.monotonic()  # when it was handed over, and when its first text had a slot
        self.given: list[int] = []  # tokens of each text that events have brought
        self.scheduler: Scheduler | None = None  # that runs it

    def put(self, event: Event | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has been closed
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Worker:
    """Runs `schedulers`, of which the first that a tree fits takes it. `waiting` is the most jobs that may wait."""

    def __init__(self, schedulers: Sequence[Scheduler], waiting: int):
        self.schedulers, self._most = list(schedulers), waiting
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._jobs: dict[int, tuple[Job, int]] = {}  # by the identity of a text: its job and its number there
        self._open: set[Job] = set()
        self._waiting: set[Job] = set()  # those of the open ones none of whose texts has had a slot
        self._thread: threading.Thread | None = None
        self.alive = False
        self.ready = False

    def start(self, warm: Callable[[], Iterable[Any]] = tuple) -> None:
        """Start the thread, which goes through `warm()` before it takes the first job, and may be stopped between its items."""
        self.alive = True
        self._thread = threading.Thread(target=self._run, args=(warm,), name="lanes", daemon=True)
        self._thread.start()

    def stop(self, seconds: float | None = None) -> bool:
        """End the thread after the step that it is in. Whether that has ended, within `seconds`."""
        self._inbox.put(("stop", None))
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """End all jobs: what waits for them gets an error."""
        for job in tuple(self._open):
            job.put(None)

    @property
    def running(self) -> int:
        """Texts that have a slot."""
        return sum(slot is not None for each in self.schedulers for group in each.groups for slot in group.slots)

    @property
    def waiting(self) -> int:
        """Jobs none of whose texts has had a slot."""
        return len(self._waiting)

    @property
    def jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._open)

    @property
    def slots(self) -> int:
        return sum(len(group.slots) for each in self.schedulers for group in each.groups)

    def _fitting(self, tree: Tree) -> Scheduler | None:
        """The first lane that has room for a tree."""
        longest = max(branch.length for branch in tree.branches)
        fits = (each for each in self.schedulers if len(tree.tokens) <= each.lane.trunk and longest <= each.lane.branch)
        return next(fits, None)

    def submit(self, tree: Tree) -> Job:
        """Hand a tree over, from the event loop. ApiError if too many wait, or if the worker has died."""
        if not self.alive:
            raise ApiError(503, "the engine has stopped; the server must be started again")
        if self._fitting(tree) is None:
            raise ApiError(400, "the request does not fit a lane of this server", code="context_length_exceeded")
        if self.waiting >= self._most:
            raise ApiError(429, f"{self._most} requests are waiting; try again later")
        job = Job(tree, asyncio.get_running_loop())
        self._open.add(job)
        self._waiting.add(job)
        self._inbox.put(("submit", job))
        if not self.alive:  # it has died meanwhile, and may not have seen the job
            job.put(None)
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more."""
        if job in self._open:
            self._inbox.put(("cancel", job))

    def end(self, job: Job, branch: int) -> None:
        """End one text of a job, because a stop string was found in it."""
        self._inbox.put(("end", (job, branch)))

    def _run(self, warm: Callable[[], Iterable[Any]]) -> None:
        try:
            for _ in warm():
                if not self._take(wait=False):
                    return
            self.ready = True
            while True:
                busy = [each for each in self.schedulers if each.busy]
                if not self._take(wait=not busy):
                    return
                for scheduler in [each for each in self.schedulers if each.busy]:
                    changed = scheduler.step()
                    self._note_begun(scheduler)
                    self._tell(changed)
        except BaseException:  # the device has failed, or the code: no request can be served any more
            logger.exception("the engine has stopped")
        finally:
            self.alive = self.ready = False
            self.give_up()

    def _take(self, *, wait: bool) -> bool:
        """Do what was asked since the last step; False if the thread is to end."""
        while True:
            try:
                what, subject = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if what == "stop":
                return False
            if what == "submit":
                self._begin(subject)
            elif what == "cancel":
                self._cancel(subject)
            else:
                job, branch = subject
                if job in self._open and not job.written[branch].done:
                    job.scheduler.stop(job.written[branch])
                    self._tell([job.written[branch]])

    def _begin(self, job: Job) -> None:
        scheduler = self._fitting(job.tree)
        job.scheduler, job.written = scheduler, scheduler.submit(job.tree)
        job.given = [0] * len(job.written)
        for number, written in enumerate(job.written):
            self._jobs[id(written)] = job, number

    def _cancel(self, job: Job) -> None:
        if job not in self._open:
            return
        for written in job.written:
            if not written.done:
                job.scheduler.cancel(written)
        self._close(job)

    def _note_begun(self, scheduler: Scheduler) -> None:
        """Jobs whose first text has been given a slot wait no more."""
        if not self._waiting:
            return
        for slot in (slot for group in scheduler.groups for slot in group.slots if slot is not None):
            if id(slot.written) in self._jobs:
                self._begun(self._jobs[id(slot.written)][0])

    def _begun(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.discard(job)
            job.begun = time.monotonic()

    def _tell(self, changed: Sequence[Written]) -> None:
        """Send an event for every text that has grown or ended."""
        for written in changed:
            if id(written) not in self._jobs:
                continue
            job, number = self._jobs[id(written)]
            self._begun(job)  # a text of a single token has left its slot before the step's end
            first, job.given[number] = job.given[number], len(written.tokens)
            new = slice(first, None)
            finished = written if written.done else None
            job.put(Event(number, tuple(written.tokens[new]), tuple(written.logps[new]), tuple(written.top[new]), finished))
        for job in {self._jobs[id(written)][0] for written in changed if id(written) in self._jobs}:
            if all(each.done for each in job.written):
                self._close(job)

    def _close(self, job: Job) -> None:
        self._open.discard(job)
        self._waiting.discard(job)
        for written in job.written:
            self._jobs.pop(id(written), None)
