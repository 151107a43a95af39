"""The other processes of a run: are they alive, and how far are they?

In one program over many hosts, all wait for the slowest; a host that hangs or is gone leaves the others in a collective that
never ends, and none of them can say why. So every process beats: a small file in the run directory, which all of them see.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.exits import PEER_LOST

BEAT_SECONDS = 5.0
# What takes as long as it takes, and says nothing meanwhile.
COMPILING, LOADING, MEASURING = "compiling", "loading the model", "measuring the data"
UNTIMED = (COMPILING, LOADING, MEASURING)


class Peers:
    """Beats for this process and watches the others, as a context that is left when the run ends.

    A peer whose beat stays the same for `timeout` seconds is gone: this process says which and ends with `PEER_LOST`. If no
    process gets further for `hang` seconds, and none is compiling, the ones that are behind are named, and what they are doing.
    A process that leaves with an error, or without `finished`, falls silent, and so is gone for the others.
    """

    def __init__(
        self,
        directory: epath.Path,
        process: int,
        count: int,
        timeout: float,
        hang: float,
        *,
        leave: Callable[[int], None] = os._exit,
    ):
        self._directory, self._process, self._count, self._timeout, self._hang, self._leave = (
            directory,
            process,
            count,
            timeout,
            hang,
            leave,
        )
        self._step, self._doing, self._beats = 0, LOADING, 0
        self._complaint = ""
        self.finished = self._searched = False
        self._seen: dict[int, tuple[str, float]] = {}
        self._progress: tuple[str, float] = ("", time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def forget(self) -> None:
        """Remove this process's beat of an earlier attempt: to be done by all before any starts, or one would seem gone."""
        if self._count > 1:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._path(self._process).unlink(missing_ok=True)

    def __enter__(self) -> Peers:
        if self._count > 1:
            self._beat(self._doing)  # one that ends before the first tick was there, and is gone
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            if self.finished:
                self._beat("finished")

    def at(self, step: int, doing: str) -> None:
        """Called by the loop: what this process is about to do."""
        self._step, self._doing = step, doing

    def lost(self) -> str | None:
        """Which peers stopped beating, in words, after waiting long enough to tell; None if all are alive."""
        if self._count == 1 or self._searched:
            return None
        self._searched = True  # an error is judged once, however many contexts it passes
        deadline = time.monotonic() + self._timeout + 2 * BEAT_SECONDS
        while time.monotonic() < deadline:
            gone = self._gone(time.monotonic())
            if gone:
                return gone
            time.sleep(1)
        return None

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._beat(self._doing)
            gone = self._gone(time.monotonic())
            if gone:
                say(f"process {self._process}: {gone}; ending, the same command continues from the newest checkpoint")
                self._leave(PEER_LOST)
                return
            behind = self._behind(time.monotonic())
            if behind:
                say(f"process {self._process}: no step was finished for {self._hang:.0f} s; {behind}")
                self._leave(PEER_LOST)
                return

    def _beat(self, doing: str) -> None:
        """One that cannot be written (a full disk, an object store that is away) is said once, and the next one is tried."""
        try:
            self._write(doing)
        except Exception as error:  # whatever a storage backend raises: the thread must live on
            complaint = str(error).strip() or type(error).__name__
            if complaint != self._complaint:
                say(f"process {self._process}: no sign of life can be left in {self._directory} ({complaint})")
            self._complaint = complaint

    def _write(self, doing: str) -> None:
        self._beats += 1
        beat = {"beat": self._beats, "step": self._step, "doing": doing, "host": platform.node(), "pid": os.getpid()}
        write_atomically(self._path(self._process), strict_json.dumps(beat).encode())

    def _path(self, process: int) -> epath.Path:
        return self._directory / f"process-{process}.json"

    def _read(self) -> dict[int, dict]:
        found = {}
        for process in range(self._count):
            try:
                found[process] = strict_json.loads(self._path(process).read_text())
            except Exception:  # not there yet, a file system in the middle of it, or whatever an object store raises
                continue
        return found

    def _gone(self, now: float) -> str | None:
        gone = []
        for process, beat in self._read().items():
            text = strict_json.dumps(beat)
            if self._seen.get(process, ("", 0.0))[0] != text:
                self._seen[process] = (text, now)
            silent = now - self._seen[process][1]
            if process != self._process and silent > self._timeout and beat["doing"] != "finished":
                gone.append(
                    f"process {process} on {beat['host']} is gone (silent for {silent:.0f} s, last at step {beat['step']})"
                )
        return "; ".join(gone) or None

    def _behind(self, now: float) -> str | None:
        beats = self._read()
        where = strict_json.dumps({process: [beat["step"], beat["doing"]] for process, beat in beats.items()})
        if where != self._progress[0] or any(beat["doing"] in UNTIMED for beat in beats.values()):
            self._progress = (where, now)
        if now - self._progress[1] < self._hang or len(beats) < self._count:
            return None
        # Who waits in a step waits for the others; who does something else is waited for.
        least = min(beat["step"] for beat in beats.values())
        slow = {p: b for p, b in beats.items() if b["step"] == least}
        slow = {p: b for p, b in slow.items() if b["doing"] != "in step"} or slow
        return "; ".join(f"process {p} on {b['host']} hangs at step {b['step']}: {b['doing']}" for p, b in slow.items())
