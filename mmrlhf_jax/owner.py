"""The owner of a directory: a process as recorded in a file, and whether it is alive, as far as this process can tell."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
import uuid
from pathlib import Path

from mmrlhf_jax import strict_json

held_here: set[str] = set()  # nonces of the owner files that this process holds


@dataclasses.dataclass(frozen=True)
class Owner:
    """The content of an owner file. `place` identifies where process ids are comparable: a boot of a host, and a PID
    namespace."""

    nonce: str
    pid: int
    host: str
    place: str = ""
    started: str = ""  # start time of the process in kernel ticks, because process ids are reused
    beat: int = 0
    at: float = 0.0  # time of the beat, by the clock of `place` (`now_here`)

    @staticmethod
    def me() -> Owner:
        return Owner(uuid.uuid4().hex, os.getpid(), socket.gethostname(), _place(), _process(os.getpid())[1])

    @staticmethod
    def parse(text: str) -> Owner | None:
        """The owner in a file's text; None if it is not valid, for example while it is being written."""
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
        """Whether the owner runs where this process can see whether it is alive."""
        return self.host == socket.gethostname() and self.place in ("", _place())

    @property
    def has_ended(self) -> bool:
        """Whether the owner's process has ended; only valid if it `is_here`."""
        if self.pid == os.getpid():  # an earlier process with the same id, or an earlier attempt of this process
            return self.nonce not in held_here
        alive, started = _process(self.pid)
        return not alive or bool(self.started and started and self.started != started)


def now_here() -> float:
    """Seconds on a clock that is common to all processes of this host, is never set, and runs while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def named(owner: Owner | None) -> str:
    return "another process" if owner is None else f"process {owner.pid} on {owner.host}"


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _process(pid: int) -> tuple[bool, str]:
    """(whether the process is alive, its start time in kernel ticks or ""). A zombie is not alive."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *fields = stat[stat.rindex(")") + 2 :].split()  # the name before may contain any characters
        return state not in "ZX", fields[18]
    except OSError:
        if Path("/proc/self/stat").exists():
            return False, ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False, ""
    except PermissionError:  # the process of another user
        pass
    return True, ""
