"""How `mmrlhf train` ends, for whoever starts it: 0 finished, 2 something the user gave is wrong, else as here."""

from __future__ import annotations

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
