"""Bodies, heads and connections of clients that mean harm, on the running server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time

import httpx
import pytest

from mmrlhf_jax.serving import server
from tests.serving.attacks import CHAT, alive, chat, refused
from tests.serving.conftest import LIMITS, make_service, running, soon, started


def test_a_body_is_read_no_further_than_the_limit(address):
    """Neither one that says how long it is, nor one in chunks that does not."""
    large = json.dumps(chat("x" * LIMITS.body)).encode()
    headers = {"content-type": "application/json"}
    refused(httpx.post(f"{address}{CHAT}", content=large, headers=headers), 413, "larger than")

    def endless():
        for _ in range(64):
            yield b" " * 65536

    with contextlib.suppress(httpx.WriteError):  # the server may have answered and closed while we were still sending
        refused(httpx.post(f"{address}{CHAT}", content=endless(), headers=headers), 413, "larger than")
    assert alive(address)


@pytest.mark.parametrize("how", ["one", "many"])
def test_a_head_is_bounded(address, how):
    headers = {"x": "a" * 70_000} if how == "one" else {f"x-{number}": "a" * 100 for number in range(600)}
    with contextlib.suppress(httpx.TransportError):  # it may be closed without an answer
        assert httpx.get(f"{address}/health", headers=headers).status_code in (400, 431)
    assert alive(address)


def test_a_connection_that_never_finishes_its_head_is_closed(judge, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    with running(make_service(judge)) as address:
        port = int(address.rsplit(":", 1)[1])
        for start in (b"", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
                slow.sendall(start)
                began, closed = time.monotonic(), False
                slow.settimeout(0.05)
                while time.monotonic() - began < 8 and not closed:
                    try:
                        closed = slow.recv(4096) == b""
                        slow.sendall(b"X-a: b\r\n")
                    except TimeoutError:
                        continue
                    except OSError:
                        closed = True
                assert closed
        assert alive(address)


@pytest.mark.parametrize(
    ("content", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"[]", "application/json", 400, "must be a JSON object"),
        (b'{"a": NaN}', "application/json", 400, "not valid JSON"),
        (b'{"a": 1e999}', "application/json", 400, "not valid JSON"),
        (b"[" * 15_000, "application/json", 400, "not valid JSON"),
        (b'{"a":' * 9_000, "application/json", 400, "not valid JSON"),
        (b"[" * 100_000, "application/json", 400, "more than 20000 values"),
        (b'{"responses": [' + b"1," * 100_000 + b"1]}", "application/json", 400, "more than 20000 values"),
        (b'{"model": "a", "model": "b"}', "application/json", 400, "not valid JSON"),
        (b'{"a": NaN, "' + b'\\"' * 400_000, "application/json", 400, "not valid JSON"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "application/json", 400, "not valid JSON"),
        (b'{"\\ud800": 1}', "application/json", 400, "not valid JSON"),
        (b'{"a": [', "application/json", 400, "not valid JSON"),
        (b"\xff\xfe", "application/json", 400, "not valid JSON"),
        (b"{}", "text/plain", 415, "is not application/json"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "is not application/json"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_json_object_is_refused(address, content, kind, status, says):
    began = time.monotonic()
    refused(httpx.post(f"{address}{CHAT}", content=content, headers={"content-type": kind}), status, says)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("OPTIONS", CHAT, 405),
        ("TRACE", "/health", 405),
        ("POST", "/v1/files", 404),
        ("GET", "/../x", 404),
        ("GET", "/health/", 404),
        ("POST", f"{CHAT}/", 404),
    ],
)
def test_other_paths_and_methods_do_not_exist(address, method, path, status):
    """Nor is anybody sent elsewhere: the address would be made of the Host header."""
    reply = httpx.request(method, f"{address}{path}", headers={"host": "localhost"})
    refused(reply, status, "path")
    assert "location" not in reply.headers


# What HTTP allows ----------------------------------------------------------------------------------------------------


def exchanged(address: str, *parts: bytes, half: bool = False, pause: float = 0.05) -> bytes:
    """What the server sends until it closes the connection, at the latest when it has been idle for long."""
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=10) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        if half:
            client.shutdown(socket.SHUT_WR)
        client.settimeout(20)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while part := client.recv(65536):
                found += part
        return found


CLOSE = b"Connection: close\r\n"
HOST = b"Host: 127.0.0.1\r\n"
BODY = json.dumps(chat("Why?")).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST + CLOSE


def test_forms_of_http(address):
    health = b"GET /health HTTP/1.1\r\n" + HOST
    assert exchanged(address, (health + b"\r\n") * 2 + health + CLOSE + b"\r\n").count(b'{"status":"ok"}') == 3  # pipelined
    assert exchanged(address, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert exchanged(address, b"HEAD /health HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n").endswith(b"\r\n\r\n")
    length = b"Content-Length: %d\r\n" % len(BODY)
    slow = exchanged(address, HEAD + length + b"\r\n", BODY[:20], BODY[20:])
    assert slow.startswith(b"HTTP/1.1 200") and b'"finish_reason"' in slow
    chunks = [b"%x\r\n" % len(part) + part + b"\r\n" for part in (BODY[:7], BODY[7:])]
    assert b'"finish_reason"' in exchanged(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n")
    awaited = exchanged(address, HEAD + length + b"Expect: 100-continue\r\n\r\n", BODY, pause=0.2)
    assert awaited.startswith(b"HTTP/1.1 100") and b'"finish_reason"' in awaited
    first, last = HEAD.removesuffix(CLOSE) + length + b"\r\n" + BODY, HEAD + length + b"\r\n" + BODY
    two = exchanged(address, first + last)
    assert two.count(b'"finish_reason"') == 2


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n\r\n",  # no host
        b"GET /health HTTP/1.1\r\n" + HOST * 2 + b"\r\n",
        b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /health HTTP/1.1\r\nA b: c\r\n" + HOST + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,  # TLS
        HEAD + b"Content-Length: -1\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        HEAD + b"Content-Length: 2, 3\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    ],
    ids=lambda head: repr(head[:60]),
)
def test_what_is_no_http_is_refused(address, head):
    """In the form of all refusals, which OpenAI's client reads."""
    start, _, body = exchanged(address, head, b"\r\n\r\n").partition(b"\r\n\r\n")
    assert start.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")) and b"x-request-id" in start.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert alive(address)


def test_what_is_no_http_behind_a_refused_head_gets_no_second_reply(address, caplog):
    wrong = HEAD.replace(b"application/json", b"text/plain").replace(CLOSE, b"")
    found = exchanged(address, wrong + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n", pause=0.3)
    assert found.startswith(b"HTTP/1.1 415") and found.count(b"HTTP/1.1") == 1
    assert alive(address) and not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize(
    "sent", [HEAD + b"Content-Length: 500\r\n\r\n{", HEAD[:40], HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY]
)
def test_a_client_that_closes_one_half_costs_nothing(address, service, sent):
    exchanged(address, sent, half=True)
    deadline = time.monotonic() + 10
    while (service.worker.jobs or service.handled) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert service.worker.jobs == service.handled == 0 and alive(address)


def test_a_body_that_does_not_come_is_not_waited_for(judge):
    with running(make_service(judge, limits=dataclasses.replace(LIMITS, body_seconds=0.3))) as address:
        found = exchanged(address, HEAD + b"Content-Length: 500\r\n\r\n{", b'"', b"a", pause=0.2)
        assert found.startswith(b"HTTP/1.1 408") and b"the request's body took longer than" in found
        assert alive(address)


def test_a_request_that_comes_as_an_idle_connection_is_closed_is_answered(judge, monkeypatch):
    """The event loop is busy when the time of an idle connection ends, and the request comes before it has seen that."""
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.5)
    busy, sent = threading.Event(), threading.Event()

    def occupy(loop) -> None:
        loop.call_later(0.01, lambda: (busy.set(), sent.wait(20)))  # runs in the same turn of the loop as the end of idleness
        time.sleep(1.0)

    with started(make_service(judge)) as found:
        (listening,) = found.server.servers
        with socket.create_connection(listening.sockets[0].getsockname(), timeout=20) as client:
            ask = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
            client.sendall(ask)
            assert b"200 OK" in client.recv(65536)
            loop = listening.get_loop()
            loop.call_soon_threadsafe(occupy, loop)
            assert busy.wait(20)
            client.sendall(ask)
            sent.set()
            assert b"200 OK" in client.recv(65536)
            assert client.recv(65536) == b""  # idle again, and closed


def test_replies_that_are_not_read_end_the_connection(judge, monkeypatch):
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.5)
    with running(make_service(judge)) as address, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(address.rsplit(":", 1)[1])))
        client.setblocking(False)
        ask, deadline, closed = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n", time.monotonic() + 20, False
        while not closed and time.monotonic() < deadline:
            try:
                client.send(ask * 50)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                closed = True
        assert closed and alive(address)


@pytest.mark.long
def test_connections_are_bounded(judge, monkeypatch):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 6)
    with running(make_service(judge)) as address, contextlib.ExitStack() as opened:
        port = int(address.rsplit(":", 1)[1])
        clients = [opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=2)) for _ in range(12)]
        closed = 0
        for client in clients:
            client.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                try:
                    closed += client.recv(1) == b""
                except ConnectionResetError:
                    closed += 1
        assert closed >= 5
        opened.close()
        time.sleep(0.2)
        assert alive(address)


def test_requests_are_bounded_and_health_is_answered_nevertheless(judge):
    """A server that is only busy must not look dead to whoever would start it again."""
    service = make_service(judge, limits=dataclasses.replace(LIMITS, requests=3))
    with running(service) as address, contextlib.ExitStack() as opened:
        for _ in range(3):
            slow = opened.enter_context(socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=5))
            slow.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        soon(lambda: service.handled == 3)
        for path in ("/health", "/ready"):
            assert httpx.get(f"{address}{path}").status_code == 200
        reply = httpx.post(f"{address}{CHAT}", json=chat("Why?"))
        refused(reply, 429, "the server has 3 requests")
        assert reply.headers["retry-after"] and reply.headers["x-should-retry"] == "true"
        opened.close()
        soon(lambda: service.handled == 0)
        assert httpx.post(f"{address}{CHAT}", json=chat("Why?"), timeout=300).status_code == 200


def test_bodies_are_bounded_together(judge):
    """Several clients that send slowly cannot make the server hold more than it may."""
    with running(make_service(judge, limits=dataclasses.replace(LIMITS, bodies=100_000))) as address:
        port = int(address.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
            slow.sendall(HEAD + b"Content-Length: 90000\r\n\r\n" + b" " * 80_000)
            time.sleep(0.5)
            body = chat("x" * 30_000)
            reply = httpx.post(f"{address}{CHAT}", json=body)
            refused(reply, 429, "as many bytes of requests as it can")
            assert reply.headers["retry-after"] and reply.headers["x-should-retry"] == "true"
        time.sleep(0.3)
        refused(httpx.post(f"{address}{CHAT}", json=body), 400, "this server has room for")
