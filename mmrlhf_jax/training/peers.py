"""Heartbeats: every process of a run finds out whether the others are alive, and at which step they are.

If one host of a multi-host program hangs or dies, the others block in a collective that never ends, without any message. So
every process writes a heartbeat line into the key-value store of JAX's coordination service, which lives in the memory of the
first process, and reads the lines of all processes from there. No file system is needed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.exits import PEER_LOST
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.progress import say

BEAT_SECONDS = 5.0
# At most so many seconds between two reads count as a peer's silence. A process that was itself suspended, or blocked on the
# network, for longer cannot know whether the peers wrote beats meanwhile.
MOST_BETWEEN_LOOKS = 2 * BEAT_SECONDS
# Activities without a time limit (`hang` does not apply), because they report no progress.
COMPILING, LOADING, MEASURING = "compiling", "loading the model", "measuring the data"
UNTIMED = (COMPILING, LOADING, MEASURING)
# Errors of a collective whose peer is gone. Gloo (CPU) raises ValueError if the failure is noticed at dispatch.
LOST_PEER = (jax.errors.JaxRuntimeError, ValueError)


class Lines(Protocol):
    """One line per process, visible to all. Both methods may raise any error of their transport."""

    def write(self, process: int, line: str) -> None: ...

    def read(self) -> dict[int, str]: ...


class CoordinatorLines:
    """Lines in JAX's coordination service: one call writes, one reads the lines of all processes. Empty at every start."""

    PREFIX = "mmrlhf/beats/"

    def __init__(self, client: Any):
        self._client = client

    def write(self, process: int, line: str) -> None:
        self._client.key_value_set(f"{self.PREFIX}{process}", line, allow_overwrite=True)

    def read(self) -> dict[int, str]:
        return {int(key.rpartition("/")[2]): line for key, line in self._client.key_value_dir_get(self.PREFIX)}


def coordinator_lines() -> CoordinatorLines:
    from jax._src.distributed import global_state  # JAX has no public name for it; Orbax imports it the same way

    return CoordinatorLines(global_state.client)


class Peers:
    """Writes this process's beats and watches the others': a context that is left when the run ends.

    A peer whose beat stays the same for `timeout` seconds is lost: this process names it and exits with `PEER_LOST`. If no
    process makes progress for `hang` seconds, and none is in an `UNTIMED` activity, this process names those that are behind,
    with what they are doing, and exits as well. A process that leaves the context with an error, or without setting `finished`,
    stops writing beats; the others then treat it as lost.
    """

    def __init__(
        self,
        lines: Lines | None,
        process: int,
        count: int,
        timeout: float,
        hang: float,
        *,
        leave: Callable[[int], None] = os._exit,
    ):
        """`timeout` and `hang` are seconds. `lines` may be None if `count` is 1. `leave` ends the process."""
        self._lines, self._process, self._count = lines, process, count
        self._timeout, self._hang, self._leave = timeout, hang, leave
        self._step, self._doing, self._beats = 0, LOADING, 0
        self._complaint = self._line = ""
        self.finished = self._searched = False
        self._looked: float | None = None  # time of the last read
        self._seen: dict[int, tuple[str, float]] = {}  # by process: its last line, and for how many seconds it is unchanged
        self._progress: tuple[str, float] = ("", 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def __enter__(self) -> Peers:
        if self._count > 1:
            self._beat(self._doing)  # now, so that a process that dies before the thread's first beat is noticed
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            if self.finished:
                self._beat("finished")

    def at(self, step: int, doing: str) -> None:
        """Tell the others what this process does next (`doing`), after `step` finished steps. Called by the loop."""
        self._step, self._doing = step, doing

    def lost(self) -> str | None:
        """Wait long enough to know, then say which peers stopped beating, in words; None if all are alive."""
        if self._count == 1 or self._searched:
            return None
        self._searched = True  # `ends_if_alone` contexts are nested; only the innermost one waits
        deadline = time.monotonic() + self._timeout + 2 * BEAT_SECONDS
        while time.monotonic() < deadline:
            gone, _ = self.look(time.monotonic())
            if gone:
                return gone
            time.sleep(1)
        return None

    def look(self, now: float) -> tuple[str | None, str | None]:
        """Read all beats at time `now` (seconds): (which processes are gone, which hang), each in words or None."""
        try:
            lines = self._lines.read()
        except Exception:  # any transport error: the coordinator may be gone, which JAX reports itself
            return None, None
        elapsed = 0.0 if self._looked is None else min(max(now - self._looked, 0.0), MOST_BETWEEN_LOOKS)
        self._looked = now
        if self._line and lines.get(self._process) != self._line:  # the read is stale: it lacks this process's newest beat
            elapsed = 0.0
        for process in range(self._count):
            line = lines.get(process, "")  # "" for a process that has not beaten yet; its silence counts as well
            last, silent = self._seen.get(process, ("", 0.0))
            self._seen[process] = (line, silent + elapsed if line == last else 0.0)
        beats = {process: strict_json.loads(line) for process, line in lines.items()}
        return self._gone(beats), self._behind(beats, elapsed)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._beat(self._doing)
            gone, behind = self.look(time.monotonic())
            if gone:
                say(f"process {self._process}: {gone}; ending, the same command continues from the newest checkpoint")
                self._leave(PEER_LOST)
                return
            if behind:
                say(f"process {self._process}: no step was finished for {self._hang:.0f} s; {behind}")
                self._leave(PEER_LOST)
                return

    def _beat(self, doing: str) -> None:
        """Write a beat. A failure is reported once per message; the next beat is tried all the same."""
        self._beats += 1
        beat = {"beat": self._beats, "step": self._step, "doing": doing, "host": platform.node(), "pid": os.getpid()}
        line = strict_json.dumps(beat)
        try:
            self._lines.write(self._process, line)
            self._line = line
        except Exception as error:  # any transport error: the thread must go on
            complaint = str(error).strip().split("\n")[0] or type(error).__name__
            if complaint != self._complaint:
                say(f"process {self._process}: the other processes get no heartbeat of it ({complaint})")
            self._complaint = complaint

    def _gone(self, beats: dict[int, dict]) -> str | None:
        gone = []
        for process, (_, silent) in self._seen.items():
            if process == self._process or silent <= self._timeout:
                continue
            beat = beats.get(process)
            if beat is None:
                gone.append(f"process {process} is gone (no sign of life for {silent:.0f} s)")
            elif beat["doing"] != "finished":
                gone.append(
                    f"process {process} on {beat['host']} is gone (silent for {silent:.0f} s, last at step {beat['step']})"
                )
        return "; ".join(gone) or None

    def _behind(self, beats: dict[int, dict], elapsed: float) -> str | None:
        where = strict_json.dumps({process: [beat["step"], beat["doing"]] for process, beat in beats.items()})
        moved = where != self._progress[0] or any(beat["doing"] in UNTIMED for beat in beats.values())
        self._progress = (where, 0.0 if moved else self._progress[1] + elapsed)
        if self._progress[1] < self._hang or len(beats) < self._count:
            return None
        # A process that is "in step" is blocked in a collective, so the cause is one that does something else, if there is any.
        least = min(beat["step"] for beat in beats.values())
        slow = {p: b for p, b in beats.items() if b["step"] == least}
        slow = {p: b for p, b in slow.items() if b["doing"] != "in step"} or slow
        return "; ".join(f"process {p} on {b['host']} hangs at step {b['step']}: {b['doing']}" for p, b in slow.items())


def peers_of(launch: config.Launch) -> Peers:
    """The other processes of this launch, with its time limits."""
    limits = launch.distributed or config.Distributed()
    lines = coordinator_lines() if jax.process_count() > 1 else None
    return Peers(lines, jax.process_index(), jax.process_count(), limits.heartbeat_timeout, limits.hang_timeout)


@contextlib.contextmanager
def ends_if_alone(peers: Peers) -> Iterator[None]:
    """A context that ends this process if a collective fails because another process is gone (`end_if_alone`)."""
    try:
        yield
    except LOST_PEER as error:
        end_if_alone(peers, error)
        raise


def end_if_alone(peers: Peers, error: Exception) -> None:
    """If a peer is gone, say which, and exit with `PEER_LOST`, on which launchers restart all processes; else return.

    It calls `os._exit`, because an orderly exit would wait for the lost process.
    """
    lost = peers.lost()
    if lost is not None:
        say(f"{first_line(error)}: {lost}; the same command continues from the newest checkpoint")
        sys.stdout.flush()
        os._exit(PEER_LOST)
