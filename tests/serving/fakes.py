"""A small server that replies as it is told, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """`length` is the content length that is announced; None: the right one. Status 0 drops the connection."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012
    length: int | None = None


def chat(text: str | None = "fine", reason: str = "stop", **more: Any) -> Reply:
    """A reply of `/v1/chat/completions`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return Reply(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}, **more}).encode())


def refusal(status: int, message: str = "no", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), named)


class Fake:
    """`reply(body)` makes the reply to a chat request; those in `first` come before it, to any request."""

    def __init__(self, reply: Callable[[dict], Reply] = lambda body: chat(), models: tuple[str, ...] = ("m",)):
        self.reply, self.models = reply, models
        self.first: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._lock = threading.Lock()

    def next(self, body: dict[str, Any] | None, headers: dict[str, str]) -> Reply:
        with self._lock:
            self.headers.append(headers)
            if body is not None:
                self.asked.append(body)
            if self.first:
                return self.first.pop(0)
        if body is None:
            return Reply(200, json.dumps({"data": [{"id": name} for name in self.models]}).encode())
        return self.reply(body)

    def texts(self) -> list[str]:
        """The texts of all chat requests."""
        return ["".join(part.get("text", "") for part in body["messages"][-1]["content"]) for body in self.asked]


@contextlib.contextmanager
def running(fake: Fake, certificate: tuple[Path, Path] | None = None) -> Iterator[Fake]:
    """The fake at `fake.url`, over https if it has a (certificate, key)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._reply(None)

        def do_POST(self):
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, body):
            reply = fake.next(body, {name.lower(): value for name, value in self.headers.items()})
            if reply.status == 0:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body) if reply.length is None else reply.length))
            self.end_headers()
            self.wfile.write(reply.body)
            self.close_connection = reply.length is not None

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    fake.url = f"http://127.0.0.1:{served.server_port}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        served.socket = context.wrap_socket(served.socket, server_side=True)
        fake.url = f"https://localhost:{served.server_port}"
    threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield fake
    finally:
        served.shutdown()
        served.server_close()
