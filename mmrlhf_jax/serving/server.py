"""The HTTP server around the application: its address, deadlines of connections, and an end that cuts off no reply in time."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.serving.app import make_app
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.requests import MOST_HEAD, is_loopback
from mmrlhf_jax.serving.service import Service

HEADER_SECONDS = 10.0  # for the head of a request
UNREAD_SECONDS = 60.0  # for a client to read what has been sent, when no more can be
KEEP_ALIVE_SECONDS = 5
MOST_CONNECTIONS = 768  # more are closed at once; systems usually allow a process 1024 open files
ERROR_SECONDS = 5  # for replies that are cut off at the end to be told so
POLL_SECONDS = 0.1
CUT_OFF = 1  # exit status if running requests were cut off


class Connection(H11Protocol):
    """A connection that is closed if the head of a request does not come in time, or if its replies are not read."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._reads_head:
            self._wait_for_head()
        else:
            self._head = _cancelled(self._head)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless a request has come meanwhile that the event loop, being busy, has not read yet."""
        waiting = select.poll()
        waiting.register(self.transport.get_extra_info("socket"), select.POLLIN)
        if not waiting.poll(0):
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the form of all refusals, if no other reply has been begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error, headers = ApiError(400, msg), {"x-request-id": uuid.uuid4().hex, "connection": "close"}
            reply = JSONResponse(error.body(), error.status, headers=error.headers() | headers)
            head = h11.Response(status_code=error.status, headers=reply.raw_headers, reason=STATUS_PHRASES[error.status])
            for event in (head, h11.Data(data=reply.body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._unread = _cancelled(self._unread)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._unread = _cancelled(self._head), _cancelled(self._unread)
        super().connection_lost(exc)

    @property
    def _reads_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _too_late(self) -> None:
        self._head = None
        if self._reads_head and not self.transport.is_closing():
            self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Ends in two steps: at the first signal new requests are refused and running ones are finished, for `grace` seconds at
    most; then, or at a second signal, those that are left get an error and the server stops. `cut_off` counts them."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float):
        super().__init__(config)
        self._service, self._grace = service, grace
        self._hurry = threading.Event()
        self.cut_off = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self._hurry.set()
            return
        self._service.draining = True
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        service, deadline = self._service, time.monotonic() + self._grace
        say(f"ending: {service.handled} requests are finished first, for {self._grace:g} s at most")
        while service.handled and time.monotonic() < deadline and not self._hurry.wait(POLL_SECONDS):
            pass
        self.cut_off = service.handled
        service.worker.give_up()
        self.should_exit = True


def check_address(host: str, key: str | None) -> None:
    """UserError for an address that others can reach without a key, and for a key that no client can send."""
    if key is None:
        if not is_loopback(host):
            raise UserError(f"--host {host}: others can reach this address; set MMRLHF_API_KEY, or serve 127.0.0.1")
    elif not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("MMRLHF_API_KEY: a key has visible ASCII characters alone, so that a header can hold it")


def bind(host: str, port: int) -> socket.socket:
    """The address, taken before the model is loaded. UserError if that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        taken = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as closing:
            closing.callback(taken.close)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
            closing.pop_all()
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another one") from None
    return taken


def make_config(service: Service) -> uvicorn.Config:
    """uvicorn's settings, with bounds of time and size for connections."""
    return uvicorn.Config(
        make_app(service),
        http=Connection,
        ws="none",
        lifespan="off",
        server_header=False,
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ERROR_SECONDS,
        log_level="error",
        access_log=False,
    )


def run(service: Service, address: socket.socket, *, grace: float, warm: Callable[[], Iterable[Any]] = tuple) -> int:
    """Serve until a signal. `warm` runs in the worker's thread before the first request is taken, and is left between its items
    if the signal comes before.

    The exit status: 0 if every request was finished, else CUT_OFF."""
    service.worker.start(warm)
    server = Server(make_config(service), service, grace)
    try:
        server.run([address])
    finally:
        service.worker.stop()
    if server.cut_off:
        say(f"{server.cut_off} requests were not finished within {grace:g} s")
    return CUT_OFF if server.cut_off else 0
