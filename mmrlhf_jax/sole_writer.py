"""Locks an output, such as an exported model or a file of scores, so that only one process at a time writes it."""

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
    """Own the folder `workplace`, which is created if necessary. Use the result as a context; `Ownership.clear` removes the
    folder.

    UserError names a process that owns it already. The workplace of a process that has ended is taken over: at once if it was
    on this host, else after `ownership.SILENT_SECONDS`. `follows` says how its work is continued.
    """
    path = workplace / LOCK
    elsewhere = f"wait for it, or remove {path} if it has ended"
    lock = Ownership(path, f"{out}", doing, "wait for it, or end it", _lost, elsewhere=elsewhere, follows=follows)
    lock.take()
    return lock


class Held(os.PathLike):
    """An output path that this process has locked. It is path-like, so that it can be passed to functions that lock a path."""

    def __init__(self, out: epath.Path, workplace: epath.Path, lock: Ownership):
        self.out, self.workplace, self.lock = out, workplace, lock

    def __fspath__(self) -> str:
        return os.fspath(self.out)

    def __str__(self) -> str:
        return str(self.out)


@contextlib.contextmanager
def held(out: epath.PathLike, workplace: epath.Path, doing: str, *, follows: str = "going on in its place") -> Iterator[Held]:
    """`sole_writer` as a context, for work that takes long before it writes: the output is locked from the start."""
    with sole_writer(workplace, out, doing, follows=follows) as lock:
        yield Held(epath.Path(out), workplace, lock)


def _lost(reason: str) -> NoReturn:
    say(f"error: {reason}; ending without writing any more")
    os._exit(2)
