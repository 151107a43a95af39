"""The other processes of a run: are they alive, and how far are they?

In one program over many hosts, all wait for the slowest; a host that hangs or is gone leaves the others in a collective that
never ends, and none of them can say why. So every process beats: a line in the memory of the first one, which JAX's
coordination service shares with all. No file system takes part, and whoever looks reads all lines at once.
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
# Between two looks at most so much silence counts: who did not look for longer (stopped, or kept waiting by the network) does
# not know whether a peer was silent meanwhile, or itself deaf.
MOST_BETWEEN_LOOKS = 2 * BEAT_SECONDS
# What takes as long as it takes, and says nothing meanwhile.
COMPILING, LOADING, MEASURING = "compiling", "loading the model", "measuring the data"
UNTIMED = (COMPILING, LOADING, MEASURING)
# What a collective raises when another process is gone; where gloo fails already as it is dispatched, that is a ValueError.
LOST_PEER = (jax.errors.JaxRuntimeError, ValueError)


class Lines(Protocol):
    """One line per process, seen by all. Both may raise whatever their transport does."""

    def write(self, process: int, line: str) -> None: ...

    def read(self) -> dict[int, str]: ...


class CoordinatorLines:
    """In JAX's coordination service: one call to write, one to read the lines of all processes. Empty at every start."""

    PREFIX = "mmrlhf/beats/"

    def __init__(self, client: Any):
        self._client = client

    def write(self, process: int, line: str) -> None:
        self._client.key_value_set(f"{self.PREFIX}{process}", line, allow_overwrite=True)

    def read(self) -> dict[int, str]:
        return {int(key.rpartition("/")[2]): line for key, line in self._client.key_value_dir_get(self.PREFIX)}


def coordinator_lines() -> CoordinatorLines:
    from jax._src.distributed import global_state  # JAX has no public name for it; Orbax uses the same

    return CoordinatorLines(global_state.client)


class Peers:
    """Beats for this process and watches the others, as a context that is left when the run ends.

    A peer whose beat stays the same for `timeout` seconds is gone: this process says which and ends with `PEER_LOST`. If no
    process gets further for `hang` seconds, and none is compiling, the ones that are behind are named, and what they are doing.
    A process that leaves with an error, or without `finished`, stops writing beats; the others then treat it as lost.
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
        """`lines` may be None where there is one process."""
        self._lines, self._process, self._count = lines, process, count
        self._timeout, self._hang, self._leave = timeout, hang, leave
        self._step, self._doing, self._beats = 0, LOADING, 0
        self._complaint = self._line = ""
        self.finished = self._searched = False
        self._looked: float | None = None  # when
        self._seen: dict[int, tuple[str, float]] = {}  # the last line of each, and for how long it has been the same
        self._progress: tuple[str, float] = ("", 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

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
            gone, _ = self.look(time.monotonic())
            if gone:
                return gone
            time.sleep(1)
        return None

    def look(self, now: float) -> tuple[str | None, str | None]:
        """Read all beats once: (who is gone, who hangs), in words."""
        try:
            lines = self._lines.read()
        except Exception:  # whatever the transport raises: the coordinator may be gone, which JAX says itself
            return None, None
        elapsed = 0.0 if self._looked is None else min(max(now - self._looked, 0.0), MOST_BETWEEN_LOOKS)
        self._looked = now
        if self._line and lines.get(self._process) != self._line:  # what is read is older than what was written
            elapsed = 0.0
        for process in range(self._count):
            line = lines.get(process, "")  # one that never beat has ended before it could
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
        """One that cannot be written is said once, and the next one is tried."""
        self._beats += 1
        beat = {"beat": self._beats, "step": self._step, "doing": doing, "host": platform.node(), "pid": os.getpid()}
        line = strict_json.dumps(beat)
        try:
            self._lines.write(self._process, line)
            self._line = line
        except Exception as error:  # whatever the transport raises: the thread must live on
            complaint = str(error).strip().split("\n")[0] or type(error).__name__
            if complaint != self._complaint:
                say(f"process {self._process}: no sign of life reaches the other processes ({complaint})")
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
        # Who waits in a step waits for the others; who does something else is waited for.
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
    """A context in which a collective that fails because another process is gone ends this process, too (`end_if_alone`)."""
    try:
        yield
    except LOST_PEER as error:
        end_if_alone(peers, error)
        raise


def end_if_alone(peers: Peers, error: Exception) -> None:
    """A collective that fails because a process is gone: say which, and end so that launchers start all of them again.

    At once: an orderly end would first wait for the process that is gone.
    """
    lost = peers.lost()
    if lost is not None:
        say(f"{first_line(error)}: {lost}; the same command continues from the newest checkpoint")
        sys.stdout.flush()
        os._exit(PEER_LOST)
