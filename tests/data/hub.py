"""A stand-in for the Hugging Face hub on this machine: a folder as a dataset repository, over HTTP.

It answers what `huggingface_hub.HfFileSystem` asks: information on a repository, listings, and ranges of files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """`datasets/made/up` is `folder`, with the revisions main and v1; `datasets/made/gated` wants a login for its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, int]] = []  # (path, bytes sent) of every file that was asked for
        self.listings = 0
        self.tokens: set[str | None] = set()

    def sent(self, name: str) -> int:
        return sum(count for path, count in self.requests if path == name)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[tuple[Hub, str]]:
    """(the hub, its address)."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._refuse(404, "RepoNotFound")
        elif parts[:2] == ["api", "datasets"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 5 and parts[0] == "datasets" and parts[3] == "resolve":
            self._send_file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._answer(404, {"error": "Not Found"})

    def _describe(self, repository: str, rest: list[str]) -> None:
        if repository not in ("made/up", "made/gated"):
            return self._refuse(404, "RepoNotFound")
        kind, revision = (*rest[:2], "main", "main")[:2] if len(rest) > 1 else ("revision", "main")
        if revision not in ("main", "v1"):
            return self._refuse(404, "RevisionNotFound")
        if kind == "revision":
            return self._answer(200, {"id": repository, "sha": "0" * 40, "siblings": []})
        self.hub.listings += 1
        folder = self.hub.folder.joinpath(*rest[2:])
        if not folder.is_dir():
            return self._refuse(404, "EntryNotFound")
        found = [
            {"path": str(path.relative_to(self.hub.folder)), "type": "directory" if path.is_dir() else "file"}
            | {"oid": "0" if path.is_dir() else hashlib.sha1(path.read_bytes()).hexdigest()}
            | {"size": 0 if path.is_dir() else path.stat().st_size}
            for path in sorted(folder.iterdir())
        ]
        return self._answer(200, found)

    def _send_file(self, repository: str, revision: str, name: str) -> None:
        if repository == "made/gated" and self.headers.get("Authorization") != "Bearer hf_right":
            return self._refuse(403, "GatedRepo")
        path = self.hub.folder / name
        if not path.is_file() or revision not in ("main", "v1"):
            return self._refuse(404, "EntryNotFound")
        data = path.read_bytes()
        start, end = 0, len(data)
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(len(data), int(last) + 1 if last else len(data))
        self.hub.requests.append((name, end - start))
        self._answer(206 if wanted else 200, data[start:end])

    do_HEAD = do_GET

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, {"error": code}, {"X-Error-Code": code})

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
