"""One process at a time makes a result, such as an exported model or a file of scores: a lock beside the place names it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

from etils import epath

from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.progress import say

LOCK = "lock"


def sole_writer(workplace: epath.Path, out: epath.PathLike, doing: str, *, follows: str = "going on in its place") -> Ownership:
    """Hold `workplace`, to be entered as a context. It is made where it is not there; `Ownership.clear` ends it.

    UserError names the process that holds it already. What a process left that has ended is taken over: of this host at once,
    of another after `ownership.SILENT_SECONDS`. `follows` says what becomes of that.
    """
    path = workplace / LOCK
    elsewhere = f"wait for it, or remove {path} if it has ended"
    lock = Ownership(path, f"{out}", doing, "wait for it, or end it", _lost, elsewhere=elsewhere, follows=follows)
    lock.take()
    return lock


class Held(os.PathLike):
    """A place that this process alone writes for now. It is a path, for functions that would hold it themselves."""

    def __init__(self, out: epath.Path, workplace: epath.Path, lock: Ownership):
        self.out, self.workplace, self.lock = out, workplace, lock

    def __fspath__(self) -> str:
        return os.fspath(self.out)

    def __str__(self) -> str:
        return str(self.out)


@contextlib.contextmanager
def held(out: epath.PathLike, workplace: epath.Path, doing: str, *, follows: str = "going on in its place") -> Iterator[Held]:
    """`sole_writer` for a whole piece of work: whoever needs long to know what to write holds its place from the start."""
    with sole_writer(workplace, out, doing, follows=follows) as lock:
        yield Held(epath.Path(out), workplace, lock)


def _lost(reason: str) -> NoReturn:
    say(f"error: {reason}; ending without writing any more")
    os._exit(2)
