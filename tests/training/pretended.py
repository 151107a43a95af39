"""A train step that computes nothing, and tells when it was started and when what it returned was read."""

from __future__ import annotations

import dataclasses

import numpy as np

from mmrlhf_jax.training.work import Work


class Watched:
    """A number on a device that is still busy with `step`: whoever reads it would wait."""

    shape, ndim = (), 0

    def __init__(self, value: float, step: int, events: list, kind=np.float32):
        self._value, self._step, self._events = kind(value), step, events
        self.dtype = np.dtype(kind)

    def _read(self):
        self._events.append(("read", self._step))
        return self._value

    def __array__(self, *_, **__) -> np.ndarray:
        return np.asarray(self._read())

    def __float__(self) -> float:
        return float(self._read())

    def __int__(self) -> int:
        return int(self._read())

    def __index__(self) -> int:
        return int(self._read())

    def item(self):
        return self._read().item()

    def block_until_ready(self):
        self._read()
        return self


class PretendedStep:
    """In the place of what `make_train_step` makes. `events` are ("started", s) and ("read", s), of step s from 1, in order."""

    def __init__(self, **figures: float):
        self.events: list[tuple[str, int]] = []
        self._figures, self._done = figures, 0

    def __call__(self, state, batch):
        self._done += 1
        self.events.append(("started", self._done))
        figures = {"loss": 1.0, "grad_norm": 1.0, "skipped_steps": 0, "guard": 0}
        figures |= {f"work/{name}": 1.0 for name in Work._fields} | self._figures
        watched = {name: Watched(value, self._done, self.events) for name, value in figures.items()}
        step = Watched(self._done, self._done, self.events, np.int32)
        return dataclasses.replace(state, step=step), watched
