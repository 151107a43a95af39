"""The harness's processes: `python -m mmrlhf_jax.suite.harness.process SOCKET`.

This one imports the harness once, which takes long, and forks a process for every job, so that a task cannot touch another one.
A job's process reads its job from the connection that asks for it, and sends frames there; whatever the harness prints goes to
the job's log. When the standard input ends, the program that needs all this has ended, and so does this process.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import select
import signal
import socket
import sys
import traceback

from mmrlhf_jax.suite.harness.channel import Channel
from mmrlhf_jax.suite.harness.job import Job, reason_of


def main(address: str) -> None:
    """Serve jobs until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which sends it to the program as well
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended jobs need not be waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()
        import mmrlhf_jax.suite.harness.asking
        import mmrlhf_jax.suite.harness.scoring  # noqa: F401

        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                os._exit(_serve(connection))
            connection.close()


def _serve(connection: socket.socket) -> int:
    """Do the job of a connection. 0, or 1 after a frame that says why it failed."""
    with connection, connection.makefile("rwb") as file, contextlib.ExitStack() as stack:
        stack.callback(sys.stdout.flush)
        channel = Channel(file)
        job = Job(**channel.receive())
        _print_to(job.log)
        os.environ.update(job.environment)
        try:
            channel.send({"harness": importlib.metadata.version("lmms-eval")})
            _do(job, channel)
            channel.send({"end": True})
        except (BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
            return 1
        except (Exception, SystemExit) as error:  # a process of one task: whatever its code raises is this task's failure
            traceback.print_exc()
            channel.send({"failed": reason_of(error)})
            return 1
        return 0


def _do(job: Job, channel: Channel) -> None:
    if job.doing == "ask":
        from mmrlhf_jax.suite.harness.asking import ask

        ask(job, channel)
    else:
        from mmrlhf_jax.suite.harness.scoring import score

        score(job, channel)


def _print_to(log: str) -> None:
    """Send what this process prints to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(file, standard)
    os.close(file)


if __name__ == "__main__":
    main(sys.argv[1])
