"""Who is at work: a process as a file names it, and whether it lives, as far as this process can tell."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
import uuid
from pathlib import Path

from mmrlhf_jax import strict_json

held_here: set[str] = set()  # the nonces of what this process holds


@dataclasses.dataclass(frozen=True)
class Owner:
    """What the file says. `place` is where process ids mean the same: a host since its start, a container."""

    nonce: str
    pid: int
    host: str
    place: str = ""
    started: str = ""  # of the process, in the kernel's ticks: ids are given anew
    beat: int = 0
    at: float = 0.0  # of the beat, by the clock of `place`

    @staticmethod
    def me() -> Owner:
        return Owner(uuid.uuid4().hex, os.getpid(), socket.gethostname(), _place(), _process(os.getpid())[1])

    @staticmethod
    def parse(text: str) -> Owner | None:
        """None where the file does not say, as when it is being written."""
        try:
            found = strict_json.loads(text)
            known = {each.name for each in dataclasses.fields(Owner)}
            return Owner(**{"nonce": ""} | {name: value for name, value in found.items() if name in known})
        except (ValueError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        return strict_json.dumps(dataclasses.asdict(self))

    @property
    def is_here(self) -> bool:
        """Whether this process can tell if it lives."""
        return self.host == socket.gethostname() and self.place in ("", _place())

    @property
    def has_ended(self) -> bool:
        """Of one that `is_here`."""
        if self.pid == os.getpid():  # an earlier process of the same id, or an attempt of this process that is over
            return self.nonce not in held_here
        alive, started = _process(self.pid)
        return not alive or bool(self.started and started and self.started != started)


def now_here() -> float:
    """Seconds on a clock that all processes of this host share, that nobody sets, and that runs while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def named(owner: Owner | None) -> str:
    return "another process" if owner is None else f"process {owner.pid} on {owner.host}"


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _process(pid: int) -> tuple[bool, str]:
    """(whether it lives, when it started in the kernel's ticks). One that ended and was not waited for lives no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold anything
        return state not in "ZX", fields[18]
    except OSError:
        if Path("/proc/self/stat").exists():
            return False, ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False, ""
    except PermissionError:  # another user's
        pass
    return True, ""
