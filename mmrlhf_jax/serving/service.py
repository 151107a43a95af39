"""What all handlers share: the model, the worker, limits and figures; and how a handler waits for a job."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from mmrlhf_jax.inference.requests import Tree
from mmrlhf_jax.serving.errors import ApiError, ClientGone
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.metrics import Metrics
from mmrlhf_jax.serving.model import ServedModel
from mmrlhf_jax.serving.worker import Event, Job, Worker

Found = TypeVar("Found")


class Service:
    """`records` finds the example of a record by its id, if the server was given data; `key` is the API key. `threads` decode
    and tokenise.

    `draining`: the server is ending. `handled`: requests that have come and whose replies have not gone out.
    """

    def __init__(
        self,
        model: ServedModel,
        worker: Worker,
        limits: Limits,
        metrics: Metrics,
        key: str | None = None,
        records: Callable[[str], Any] | None = None,
        *,
        threads: int = 2,
    ):
        self.model, self.worker, self.limits, self.metrics = model, worker, limits, metrics
        self.key, self.records = key, records
        self.draining, self.handled, self.started = False, 0, time.time()
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, "requests")
        self._bodies = 0

    async def aside(self, act: Callable[..., Found], *arguments: Any) -> Found:
        """Run what takes long (decoding, tokenising) in one of a few threads, off the event loop. What nobody waits for any
        more is not begun; a thread that has begun is not freed before it has ended."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, act, *arguments)

    @contextlib.contextmanager
    def intake(self) -> Iterator[Intake]:
        """Counts the bytes of a request while it is read and prepared."""
        intake = Intake(self)
        try:
            yield intake
        finally:
            self._bodies -= intake.bytes

    def take_in(self, count: int) -> None:
        """ApiError if all requests that are being prepared have too many bytes together."""
        if self._bodies + count > self.limits.bodies:
            raise ApiError(429, "the server holds as many bytes of requests as it can; try again later")
        self._bodies += count

    def check_load(self) -> None:
        """ApiError if the server has more requests than it may, read or not. Health is answered nevertheless."""
        if self.handled > self.limits.requests:
            raise ApiError(429, f"the server has {self.limits.requests} requests; try again later")

    def check_open(self) -> None:
        """ApiError while the server is ending, or when its engine has died."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", retry=True)
        if not self.worker.alive:
            raise ApiError(503, "the engine has stopped; the server must be started again")
        if not self.worker.ready:
            raise ApiError(503, "the server is starting", retry=True)

    def submit(self, tree: Tree) -> Job:
        """A job for a tree. Whoever asks for it must see to its end: `worker.cancel` if the client goes."""
        job = self.worker.submit(tree)
        self.metrics.prefix_queries.inc(len(tree.tokens))
        self.metrics.prompt_tokens.inc(tree_tokens(tree))
        return job

    @contextlib.asynccontextmanager
    async def job(self, tree: Tree) -> AsyncIterator[Job]:
        """A job for a tree, which is cancelled when the block is left before its end, for example by a client that goes."""
        job = self.submit(tree)
        try:
            yield job
        finally:
            self.worker.cancel(job)

    async def events(self, job: Job, deadline: float = math.inf) -> AsyncIterator[Event]:
        """The events of a job until all its texts have ended. ApiError if the deadline (of the event loop's clock) passes,
        the engine dies, or the model's logits are not finite."""
        branches = len(job.tree.branches)
        last, left = [0.0] * branches, branches
        while left:
            try:
                async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                    event = await job.events.get()
            except TimeoutError:
                raise self.too_long() from None
            if event is None:
                raise ApiError(503, "the server is shutting down" if self.draining else "the engine has stopped")
            now = time.monotonic()
            if event.tokens:
                if last[event.branch]:
                    self.metrics.between_tokens.observe((now - last[event.branch]) / len(event.tokens))
                elif not any(last):
                    self.metrics.first_token.observe(now - job.submitted)
                last[event.branch] = now
                self.metrics.generation_tokens.inc(len(event.tokens))
            if event.written is not None:
                if left == branches:
                    self.metrics.prefix_hits.inc(event.written.cached)
                left -= 1
                if event.written.reason == "failed":
                    raise ApiError(500, "the model's logits are not finite; check the checkpoint, or serve it in float32")
                self.metrics.success.labels(event.written.reason).inc()
            yield event
        self.metrics.queued.observe(job.begun - job.submitted)
        self.metrics.whole.observe(time.monotonic() - job.submitted)

    def too_long(self) -> ApiError:
        return ApiError(408, f"the request took longer than {self.limits.seconds:g} s")

    async def together(self, works: Sequence[Callable[[], Awaitable[Found]]]) -> list[Found]:
        """The results of several works of one request, of which no more run at a time than there are slots. The first error
        ends the others."""
        turn = asyncio.Semaphore(self.worker.slots)

        async def one(work: Callable[[], Awaitable[Found]]) -> Found:
            async with turn:
                return await work()

        tasks = [asyncio.ensure_future(one(work)) for work in works]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclasses.dataclass
class Intake:
    """Bytes of one request that is being prepared."""

    service: Service
    bytes: int = 0

    def add(self, count: int) -> None:
        self.service.take_in(count)
        self.bytes += count


def tree_tokens(tree: Tree) -> int:
    """Tokens of a tree's prompts: the trunk's, and those of each branch, which several samples share."""
    return len(tree.tokens) + sum(len(branch.tokens) for branch in tree.branches if branch.sample == 0)


async def unless_gone(request: Request, act: Callable[[], Awaitable[Found]]) -> Found:
    """The result of `act()`, which is given up when the client disconnects: its texts then take no slot any more."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.ensure_future(act()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        for task in (work, watch):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
