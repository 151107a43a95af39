"""One process at a time makes an OUT: a file in the workplace names it."""

from __future__ import annotations

import os
from typing import NoReturn

from etils import epath

from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.progress import say

LOCK = "lock"


def sole_writer(workplace: epath.Path, out: epath.Path, doing: str) -> Ownership:
    """Hold `workplace`, to be entered as a context. It is made where it is not there.

    UserError names the process that holds it already. What a process left that has ended is taken over: of this host at once,
    of another after `ownership.SILENT_SECONDS`.
    """
    path = workplace / LOCK
    lock = Ownership(path, f"{out}", doing, f"wait for it, or remove {path} if it has ended", _lost)
    lock.take()
    return lock


def _lost(reason: str) -> NoReturn:
    say(f"error: {reason}; ending without writing any more")
    os._exit(2)
