"""The HTTP server around the application: deadlines of connections, warming up, and ending without cutting off replies."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.serving.app import make_app
from mmrlhf_jax.serving.requests import MOST_HEAD
from mmrlhf_jax.serving.service import Service

HEADER_SECONDS = 10.0  # for the head of a request
KEEP_ALIVE_SECONDS = 5
MOST_CONNECTIONS = 1024
POLL_SECONDS = 0.1


class Connection(H11Protocol):
    """A connection that is closed if the head of a request does not come in time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._reads_head:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _reads_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._reads_head and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Ends in two steps: at the first signal new requests are refused and running ones are finished, for `grace` seconds at
    most; then, or at a second signal, those that are left get an error and the server stops."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float):
        super().__init__(config)
        self._service, self._grace = service, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.force_exit = sig == signal.SIGINT
            self.should_exit = True
            return
        self._service.draining = True
        say(f"ending: {self._service.worker.jobs} requests are finished first, for {self._grace:.0f} s at most")
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        deadline = time.monotonic() + self._grace
        while self._service.worker.jobs and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._service.worker.give_up()
        self.should_exit = True


def check_host(host: str, key: str | None) -> None:
    """UserError for an address that others can reach, without a key."""
    if key:
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise UserError(f"--host {host}: others can reach this address; set MMRLHF_API_KEY, or serve 127.0.0.1")


def make_config(service: Service, host: str, port: int) -> uvicorn.Config:
    """uvicorn's settings, with bounds of time and size for connections."""
    return uvicorn.Config(
        make_app(service),
        host=host,
        port=port,
        http=Connection,
        ws="none",
        lifespan="off",
        server_header=False,
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        limit_concurrency=MOST_CONNECTIONS,
        log_level="warning",
        access_log=False,
    )


def run(service: Service, host: str, port: int, *, grace: float, warm: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal. `warm` runs in the worker's thread before the first request is taken."""
    service.worker.start(warm)
    try:
        Server(make_config(service, host, port), service, grace).run()
    finally:
        service.worker.stop()
