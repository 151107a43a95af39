"""Traces a window of steps for TensorBoard's profiler (and Perfetto)."""

from __future__ import annotations

import jax
from etils import epath

from mmrlhf_jax.progress import say


class ProfilerWindow:
    """Traces steps `first` to `first + steps - 1` into `directory`; nothing if `first` is None.

    The host does not wait for the device, so the trace may include parts of the steps before and after.
    """

    def __init__(self, directory: epath.Path, first: int | None, steps: int):
        self._directory, self._first, self._steps = directory, first, steps
        self._open = False

    def before(self, step: int) -> None:
        if step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._open = True

    def after(self, done: int) -> None:
        """Called when `done` steps have ended on the device, which the caller knows once it has read their figures."""
        if self._open and done >= self._first + self._steps:
            self.close()

    def close(self) -> None:
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
            say(f"profile: {self._directory}")
