"""Ownership of a run directory: one trainer at a time, across hosts; a trainer may consist of several processes."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from etils import epath

from mmrlhf_jax.exits import REFUSED
from mmrlhf_jax.files import plain_path
from mmrlhf_jax.ownership import LOOK_SECONDS, Ownership
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import first_decides, first_process

OWNER = "owner"


@contextlib.contextmanager
def owned(directory: epath.Path, *, leave: Callable[[int], None] = os._exit) -> Iterator[Callable[[], None]]:
    """Own a run directory. Yields a function that must be called before anything is written there.

    UserError in every process if another trainer owns the directory (nothing is changed then) or if it cannot be used. A
    trainer that was suspended for so long that another one took over says so and exits with `exits.REFUSED`.
    """
    plain_path(directory)

    def lost(reason: str) -> None:
        say(f"error: {reason}; ending without writing any more. The other one goes on from the newest checkpoint")
        sys.stdout.flush()
        leave(REFUSED)

    advice = "wait for it, end it, or set another run.directory"
    mine = Ownership(directory / OWNER, f"{directory}", "is training in it", advice, lost)
    while not first_decides(mine.attempt):
        time.sleep(LOOK_SECONDS)
    if not first_process():
        yield lambda: None
        return
    with mine:
        yield mine.check
