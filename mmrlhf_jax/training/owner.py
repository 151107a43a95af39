"""The one trainer of a run directory, on whatever host it is, and however many processes it has."""

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
    """Hold a run directory, with a function to be called before anything is written there.

    UserError, in every process, where another trainer holds it (nothing is touched then), and where it cannot be used at all.
    A trainer that was suspended for so long that another took its place says so and ends (`exits.REFUSED`).
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
