"""A rendezvous of all processes before `jax.distributed.initialize`, whose own timeout is a C++ trace that names no process.

Process 0 listens at the coordinator's address; the others connect, say who they are, and all wait until everyone has connected.
Then JAX uses the same port. If a process is missing after the timeout, or two have the same number, all processes report which.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import ABSENT

RETRY_SECONDS = 0.5
ANSWER_SECONDS = 10.0  # timeout of one message, and of making a connection
LONGEST = 4096  # maximum bytes of a message
NAMED = 8  # a text names at most so many processes and counts the others


class Absent(UserError):
    """A process of this launch did not come in time."""

    status = ABSENT


class _Guest(NamedTuple):
    connection: socket.socket
    host: str
    pid: int


def meet(address: str, count: int, process: int, timeout: float) -> None:
    """Return once all `count` processes have called this, each with its own number. `address` is HOST:PORT of process 0.

    Raises Absent, with the missing processes, after `timeout` seconds; UserError, with both processes, if two have the same
    number or different counts; UserError if process 0 cannot listen at the address.
    """
    if not 0 <= process < count:
        raise UserError(f"process {process} of {count}: the numbers of {count} processes are 0 to {count - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"the coordinator's address {address!r} is not HOST:PORT")
    if process == 0:
        _Host(count, int(port), timeout).run()
    else:
        _come(host.strip("[]"), int(port), count, process, timeout)


class _Host:
    """Process 0, which accepts the others' connections."""

    def __init__(self, count: int, port: int, timeout: float):
        self._count, self._port, self._timeout = count, port, timeout
        self._guests: dict[int, _Guest] = {}
        self._arrivals: queue.Queue[tuple[dict[str, Any], socket.socket]] = queue.Queue()

    def run(self) -> None:
        deadline = time.monotonic() + self._timeout
        with _listening(self._port) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            try:
                self._wait(deadline)
            except UserError as error:
                while not self._arrivals.empty():  # connections not looked at yet are told of the error as well
                    self._guests[-1 - len(self._guests)] = _Guest(self._arrivals.get()[1], "", 0)
                self._answer({"error": str(error), "status": error.status})
                raise
        self._answer({})

    def _wait(self, deadline: float) -> None:
        while True:
            self._guests = {number: guest for number, guest in self._guests.items() if not _left(guest.connection)}
            if len(self._guests) == self._count - 1:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise Absent(self._absence())
            with contextlib.suppress(queue.Empty):
                self._take_in(*self._arrivals.get(timeout=min(left, RETRY_SECONDS)))

    def _take_in(self, said: dict[str, Any], connection: socket.socket) -> None:
        number, guest = said["process"], _Guest(connection, said["host"], said["pid"])
        before = self._guests.get(number)
        self._guests[number] = guest
        if said["count"] != self._count:
            raise UserError(
                f"process {number} on {guest.host} was told of {said['count']} processes, process 0 on {platform.node()} of"
                f" {self._count}; start all of them with the same number"
            )
        twice = before is not None and not _left(before.connection)
        if twice or not 0 < number < self._count:
            other = before or _Guest(connection, platform.node(), os.getpid())
            if twice:
                self._guests[-1] = before  # so that the earlier one is told of the error as well
            raise UserError(
                f"two processes have the number {number} (on {other.host}, pid {other.pid}, and on {guest.host}, pid"
                f" {guest.pid}); give each of the {self._count} its own, from 0 on"
            )

    def _absence(self) -> str:
        missing = sorted({*range(1, self._count)} - {*self._guests})
        here = {0: platform.node()} | {number: guest.host for number, guest in sorted(self._guests.items())}
        came = _some([f"{number} on {host}" for number, host in here.items()])
        return (
            f"of {self._count} processes {_some(list(map(str, missing)))} did not come within {self._timeout:.0f} s (there:"
            f" {came}); look at the logs of those hosts, or raise distributed.initialization_timeout"
        )

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener was closed, because the rendezvous is over
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        """Read a connection's first message. Connections of other programs (port scanners, for example) are closed."""
        try:
            connection.settimeout(ANSWER_SECONDS)
            said = _receive(connection)
            known = {"process": int, "count": int, "host": str, "pid": int}
            if all(isinstance(said.get(name), kind) for name, kind in known.items()):
                self._arrivals.put((said, connection))
                return
        except (OSError, ValueError):
            pass
        connection.close()

    def _answer(self, answer: dict[str, Any]) -> None:
        """Send `answer` to all and wait until they have closed their connections, because JAX uses the port next."""
        for guest in self._guests.values():
            with contextlib.suppress(OSError):
                guest.connection.settimeout(ANSWER_SECONDS)
                _send(guest.connection, answer)
        for guest in self._guests.values():
            with contextlib.suppress(OSError):
                guest.connection.recv(1)
            guest.connection.close()


def _come(host: str, port: int, count: int, process: int, timeout: float) -> None:
    """What the other processes do: connect until process 0 answers."""
    deadline, reason = time.monotonic() + timeout, "no answer"
    said = {"process": process, "count": count, "host": platform.node(), "pid": os.getpid()}
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
                _send(connection, said)
                connection.settimeout(timeout + ANSWER_SECONDS)  # process 0 may have started later, with the same timeout
                answer = _receive(connection)
        except (OSError, ValueError) as error:  # not listening yet, or another program has the port (an earlier attempt, say)
            reason = " ".join(str(error).split()) or type(error).__name__
            time.sleep(RETRY_SECONDS)
            continue
        if "error" in answer:
            raise (Absent if answer.get("status") == ABSENT else UserError)(str(answer["error"]))
        return
    raise Absent(
        f"process 0, whose address is {host}:{port}, was not reached within {timeout:.0f} s by process {process} on"
        f" {platform.node()} ({reason}); look at its log, or raise distributed.initialization_timeout"
    )


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    both = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=1024
        )
    except OSError as error:
        raise UserError(
            f"port {port} of process 0 on {platform.node()} cannot be used ({error.strerror}): another run may be here; end it,"
            " or choose another port for the coordinator"
        ) from None
    try:
        yield listener
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends `accept` in the other thread, which would keep the port open
        listener.close()


def _left(connection: socket.socket) -> bool:
    """Whether the other end has closed the connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(strict_json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    """Read one line of JSON. Raises ValueError for anything else, OSError if the connection ends."""
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(LONGEST)
        if not piece:
            raise ConnectionError("the connection was closed")
        line += piece
        if len(line) > LONGEST:
            raise ValueError("not a line of ours")
    message = strict_json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not a line of ours")
    return message


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
