"""One build of an OUT at a time: a file in the workplace names the process that is at it."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import is_remote

LOCK = "lock"


@contextlib.contextmanager
def sole_build(workplace: epath.Path, out: epath.Path) -> Iterator[None]:
    """Hold `workplace`, which is made where it is not there. UserError names the process that holds it already.

    What a process of this host left that has ended is taken over. In an object store two that begin within the same moment may
    both get it: there, a file can not be made on condition that it is new.
    """
    path = workplace / LOCK
    mine = strict_json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "build": uuid.uuid4().hex})
    while not _make(path, mine):
        held = _read(path)
        if held is None:  # released since
            continue
        if not _has_ended(held):
            raise UserError(f"{out}: {_shown(held)} is building it; wait for that, or, if it has ended, remove {path}")
        _take_away(path, held)
    try:
        yield
    finally:
        if _read(path) == mine:  # not removed with the workplace, which another may have made anew
            path.unlink(missing_ok=True)


def _make(path: epath.Path, content: str) -> bool:
    """Whether the file is made; False where there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        if path.exists():
            return False
        path.write_text(content)
        return True
    try:
        with open(path, "x") as file:  # epath has no such mode
            file.write(content)
    except (FileExistsError, FileNotFoundError):  # not found: the workplace was removed at this moment
        return False
    return True


def _read(path: epath.Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _owner(held: str) -> tuple[int, str] | None:
    """(process id, host); None where the file does not say, as when it is being written."""
    try:
        owner = strict_json.loads(held)
        return int(owner["pid"]), str(owner["host"])
    except (ValueError, KeyError, TypeError):
        return None


def _shown(held: str) -> str:
    owner = _owner(held)
    return "another process" if owner is None else f"process {owner[0]} on {owner[1]}"


def _has_ended(held: str) -> bool:
    """Whether the owner certainly has: of other hosts nothing is known."""
    owner = _owner(held)
    if owner is None or owner[1] != socket.gethostname():
        return False
    if owner[0] == os.getpid():  # an earlier process: a container that starts again has the same host and the same ids
        return True
    try:
        os.kill(owner[0], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False


def _take_away(path: epath.Path, held: str) -> None:
    """Remove the file if it is still that one: of several processes that saw its owner ended, one gets the next."""
    if is_remote(path):
        path.unlink(missing_ok=True)
        return
    aside = path.parent / f"{LOCK}-{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) == held:
            aside.unlink(missing_ok=True)
        else:  # already the next one's: it goes back
            aside.rename(path)
