"""How `mmrlhf train` ends, for whoever starts it: 0 finished, 2 something the user gave is wrong, else as here."""

from __future__ import annotations

import os
import sys
import time
from typing import NoReturn

REFUSED = 2  # something the user gave is wrong, or another trainer is at work in the run directory
SIGNALLED = 143  # stopped by SIGTERM or SIGINT behind a checkpoint
PEER_LOST = 75  # another process crashed or hangs, or storage did not answer in all tries (EX_TEMPFAIL)
COORDINATOR_LOST = 134  # the first process is gone: JAX aborts the others before they can say so (SIGABRT)
ABSENT = 76  # another process of the launch never came (EX_PROTOCOL)
KILLED = 137  # outright (SIGKILL), as on a machine that is taken away, or a process that did not end in its grace period


class StoppedTogether(SystemExit):
    """All processes of a run end behind the same step. JAX's orderly end, which waits for all of them, then waits in vain for
    none."""


# The same command goes on from the newest checkpoint.
RESTART = (SIGNALLED, PEER_LOST, COORDINATOR_LOST, KILLED)

# The same command may find a host that comes late; a host that never does must not keep the others here for ever.
RETRY = (ABSENT,)
RETRIES = 3  # in a row

COORDINATOR_LINGERS = 2.0  # seconds


def leave(status: int) -> NoReturn:
    """End this process. At once where there are others: JAX's orderly end would wait for them, until their end takes this one
    along with a status that launchers restart on."""
    if one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.modules["jax"].process_index() == 0:  # without whom JAX aborts the others, who may be about to say the same
            time.sleep(COORDINATOR_LINGERS)
        os._exit(status)
    raise SystemExit(status)


def one_of_several() -> bool:
    """Whether this process runs with others as one program; without importing JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
