"""One build of an OUT at a time: a file in the workplace names the process that is at it."""

from __future__ import annotations

import os
from typing import NoReturn

from etils import epath

from mmrlhf_jax.ownership import Ownership
from mmrlhf_jax.progress import say

LOCK = "lock"


def sole_build(workplace: epath.Path, out: epath.Path) -> Ownership:
    """Hold `workplace`, which is made where it is not there. UserError names the process that holds it already.

    What a process left that has ended is taken over: of this host at once, of another after `ownership.SILENT_SECONDS`.
    """
    path = workplace / LOCK
    lock = Ownership(path, f"{out}", "is building it", f"if it has ended, remove {path}", _lost)
    lock.take()
    return lock


def _lost(reason: str) -> NoReturn:
    say(f"error: {reason}; ending without writing any more")
    os._exit(2)
