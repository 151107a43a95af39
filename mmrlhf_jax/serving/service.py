"""What all handlers share: the model, the worker, limits and figures; and how a handler waits for a job."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request

from mmrlhf_jax.inference.requests import Tree
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.limits import Limits
from mmrlhf_jax.serving.metrics import Metrics
from mmrlhf_jax.serving.model import ServedModel
from mmrlhf_jax.serving.worker import Event, Job, Worker

Found = TypeVar("Found")


@dataclasses.dataclass
class Service:
    """`records` finds the example of a record by its id, if the server was given data; `key` is the API key."""

    model: ServedModel
    worker: Worker
    limits: Limits
    metrics: Metrics
    key: str | None = None
    records: Callable[[str], Any] | None = None
    draining: bool = False
    started: float = dataclasses.field(default_factory=time.time)
    threads: int = 2

    def __post_init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def aside(self, act: Callable[..., Found], *arguments: Any) -> Found:
        """Run what takes long (decoding, tokenising) in one of a few threads, off the event loop."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self.threads)
        return await anyio.to_thread.run_sync(act, *arguments, limiter=self._limiter)

    def check_open(self) -> None:
        """ApiError while the server is ending, or when its engine has died."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", retry=True)
        if not self.worker.alive:
            raise ApiError(503, "the engine has stopped; the server must be started again")
        if not self.worker.ready:
            raise ApiError(503, "the server is starting", retry=True)

    @contextlib.asynccontextmanager
    async def job(self, tree: Tree) -> AsyncIterator[Job]:
        """A job for a tree, which is cancelled when the block is left before its end, for example by a client that goes."""
        job = self.worker.submit(tree)
        self.metrics.prefix_queries.inc(len(tree.tokens))
        try:
            yield job
        finally:
            self.worker.cancel(job)

    async def events(self, job: Job, branches: int) -> AsyncIterator[Event]:
        """The events of a job until all its texts have ended. ApiError if the deadline passes or the engine dies."""
        began, last = time.monotonic(), dict.fromkeys(range(branches), 0.0)
        left = branches
        while left:
            remaining = self.limits.seconds - (time.monotonic() - began)
            try:
                event = await asyncio.wait_for(job.events.get(), max(remaining, 0.0))
            except TimeoutError:
                raise ApiError(408, f"the request took longer than {self.limits.seconds:.0f} s") from None
            if event is None:
                raise ApiError(503, "the server is shutting down" if self.draining else "the engine has stopped")
            now = time.monotonic()
            if event.tokens:
                if last[event.branch]:
                    self.metrics.between_tokens.observe((now - last[event.branch]) / len(event.tokens))
                elif not any(last.values()):
                    self.metrics.first_token.observe(now - began)
                last[event.branch] = now
                self.metrics.generation_tokens.inc(len(event.tokens))
            if event.written is not None:
                left -= 1
                self.metrics.success.labels(event.written.reason).inc()
            yield event
        self.metrics.whole.observe(time.monotonic() - began)


async def unless_gone(request: Request, act: Callable[[], Any]) -> Any:
    """The result of `act()`, which is given up when the client disconnects: its texts then take no slot any more."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.ensure_future(act()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(400, "the client has gone")
        return work.result()
    finally:
        for task in (work, watch):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
