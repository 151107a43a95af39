"""A page in a headless Chromium, where one is installed: what it shows at a width, what it asks for, and what it complains of.

Chromium is spoken to by its DevTools protocol over a pipe, which needs no library.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needed = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
PATIENCE = 60  # seconds for which a reply is waited for; one takes less than a second as a rule


class Silent(Exception):
    """The browser has ended, or has not replied for a minute."""


class Browser:
    """A running Chromium with one tab. Commands are those of the DevTools protocol."""

    def __init__(self, commands: int, replies: int):
        self._commands, self._replies, self._number, self._buffer = commands, replies, 0, b""
        self._session: str | None = None
        self._context: str | None = None
        self.events: list[dict[str, Any]] = []
        self.forget()

    def forget(self) -> None:
        """Go on in a new tab, in which nothing is stored of what earlier pages have stored."""
        self._session = None
        if self._context is not None:
            self("Target.disposeBrowserContext", browserContextId=self._context)
        self._context = self("Target.createBrowserContext")["browserContextId"]
        target = self("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {} if self._session is None else {"sessionId": self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (reply := self._receive()).get("id") != self._number:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], PATIENCE)
            found = os.read(self._replies, 2**16) if ready else b""
            if not found:
                raise Silent
            self._buffer += found
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Load a file in a window of this width, which is that of a phone if it is narrow."""
        phone = width < 500
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.events.clear()
        self("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """What the page has logged since it was opened, and what it asked for besides itself."""
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(f"{method}: {json.dumps(parameters)[:500]}")
            elif method == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if parameters.get("type") != "Document" and not url.startswith("data:"):
                    found.append(f"asks for {url}")
        return found

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        found = self("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def printed(self) -> bytes:
        """The page as a PDF file, whose outline has the headings."""
        options = {"preferCSSPageSize": True, "generateTaggedPDF": True, "generateDocumentOutline": True}
        return base64.b64decode(self("Page.printToPDF", **options)["data"])

    def read_out(self) -> list[tuple[str, str]]:
        """(role, name) of everything that a screen reader knows of."""
        nodes = self("Accessibility.getFullAXTree")["nodes"]
        return [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each["ignored"]]


@contextlib.contextmanager
def running(folder: Path, tries: int = 3) -> Iterator[Browser]:
    """A browser whose profile is in a folder. Chromium hangs now and then as it starts: then another one is started."""
    for number in range(tries):
        with contextlib.ExitStack() as started:
            try:
                browser = Browser(*started.enter_context(_process(folder / f"profile{number}")))
            except (Silent, BrokenPipeError):
                continue
            yield browser
            return
    pytest.fail(f"{BROWSER} has not replied for {PATIENCE} seconds, {tries} times")


@contextlib.contextmanager
def _process(profile: Path) -> Iterator[tuple[int, int]]:
    """A new Chromium's pipes: where commands are written, and where replies are read."""
    (commands_read, commands), (replies, replies_write) = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    shell = ["bash", "-c", f'exec "$@" 3<&{commands_read} 4>&{replies_write}', "bash", BROWSER, *options]
    process = subprocess.Popen(
        [*shell, f"--user-data-dir={profile}"],
        pass_fds=(commands_read, replies_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(commands_read)
    os.close(replies_write)
    try:
        yield commands, replies
    finally:
        with contextlib.suppress(ProcessLookupError):  # all of its processes
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(commands)
        os.close(replies)
