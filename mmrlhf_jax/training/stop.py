"""Stopping a run on a signal, after a step on which all its processes agree."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrlhf_jax.exits import SIGNALLED
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.mesh import replicated


class StopSignal:
    """A context in which SIGTERM and SIGINT request a checkpoint and a clean exit after the running step.

    Before the first step there is nothing to save, so SIGTERM ends the process at once, with the status that launchers restart
    on. (The default action would not do: in a container the process may have id 1, for which the kernel ignores SIGTERM.)
    """

    def __init__(self) -> None:
        self.requested, self._in_steps = False, False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def steps_begin(self) -> None:
        self._in_steps = True

    def _request(self, number, frame) -> None:
        if number == signal.SIGINT and (self.requested or not self._in_steps):  # a second Ctrl-C ends at once
            raise KeyboardInterrupt
        if self.requested:  # schedulers repeat SIGTERM; finishing the checkpoint is worth more
            return
        self.requested = True
        if not self._in_steps:
            say("stopped by a signal before the first step; the same command starts again")
            raise SystemExit(SIGNALLED)


class Vote:
    """Agreement of all processes on the step to stop after. If only the signalled process stopped, the others would block for
    ever in the next step's collectives.

    With every step each process casts a vote; the maximum is read one step later, when it is available without waiting.
    """

    def __init__(self, mesh: Mesh):
        self._single = jax.process_count() == 1
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._devices = mesh.size
        self._count = jax.jit(lambda votes: votes.max(), out_shardings=replicated(mesh))
        self._cast: jax.Array | None = None

    def stops(self, requested: bool) -> bool:
        """Cast this step's vote. True if any process voted to stop at the previous step (with one process: at this step)."""
        if self._single:
            return requested
        last, mine = self._cast, np.asarray([requested], np.int32)
        votes = jax.make_array_from_callback((self._devices,), self._sharding, lambda _: mine)
        self._cast = self._count(votes)
        return last is not None and bool(np.asarray(last))
