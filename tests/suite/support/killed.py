"""A run that tests kill: `python -m tests.suite.support.killed OUT SAID`. What the policy says is noted in the file SAID before
it is handed over."""

from __future__ import annotations

import os
import sys
import time

from mmrlhf_jax.inference.jobs import ALONE
from mmrlhf_jax.suite.answering import Answering
from mmrlhf_jax.suite.request import Request
from tests.suite.support.asked import Documents, Parrot, task

TASKS = [task("mme", 40), task("pope", 60), task("ai2d", 50)]


def main(out: str, said: str) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(request: Request) -> None:
        os.write(file, f"{request.prompt}\n".encode())
        time.sleep(0.002)

    Answering(out, TASKS, Documents(), lambda: Parrot(refuse=note), ALONE).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
