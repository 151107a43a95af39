"""The exit statuses of `mmrlhf train`, on which launchers decide whether to restart it. 0 means finished."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

REFUSED = 2  # the user's input is wrong, or another trainer owns the run directory
SIGNALLED = 143  # stopped by SIGTERM or SIGINT after a checkpoint
PEER_LOST = 75  # another process crashed or hangs, or storage did not answer after all retries (EX_TEMPFAIL)
COORDINATOR_LOST = 134  # the first process is gone, and JAX aborts the others (SIGABRT)
ABSENT = 76  # another process of the launch did not come (EX_PROTOCOL)
KILLED = 137  # SIGKILL: the machine was taken away, or the process did not end within its grace period


class StoppedTogether(SystemExit):
    """All processes of a run end after the same step, so JAX's orderly shutdown, which waits for all of them, can be used."""


# After these, the same command continues from the newest checkpoint.
RESTART = (SIGNALLED, PEER_LOST, COORDINATOR_LOST, KILLED)

# After these, the same command may succeed if a host was only late; the number of retries is limited in case it never comes.
RETRY = (ABSENT,)
RETRIES = 3  # in a row

COORDINATOR_LINGERS = 2.0  # seconds


def leave(status: int) -> NoReturn:
    """Exit with `status`. If there are other processes, `os._exit` is used: JAX's orderly shutdown would wait for them, and
    when they end, this process would be aborted with another status, on which launchers restart."""
    if one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.modules["jax"].process_index() == 0:  # without it JAX aborts the others, which may be about to exit themselves
            time.sleep(COORDINATOR_LINGERS)
        os._exit(status)
    raise SystemExit(status)


def one_of_several() -> bool:
    """Whether this is one of several processes of a JAX program. Does not import JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
