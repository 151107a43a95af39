"""Decisions and actions that all processes of a run take together.

A process that took a decision alone (to stop, or to raise) would leave the others blocked in their next collective. All
processes must call these functions at the same places, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Unavailable, away, first_line

Found = TypeVar("Found")


class FailedElsewhere(RuntimeError):
    """Another process of the run failed; the message contains its error."""


def first_process() -> bool:
    """Whether this is process 0, which writes the files that all processes share: configuration, metrics."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """All-gather a JSON-serialisable value: the values of all processes, in the order of their numbers."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils  # imported only if there are several processes

    mine = np.frombuffer(strict_json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(len(mine)))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(mine)] = mine
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [strict_json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def together(act: Callable[[], Found]) -> Found:
    """Call `act` in every process and return its result. If any process fails, all raise: a failed one its own error, the
    others the error of the first failed process."""
    found, error = None, None
    try:
        found = act()
    except Exception as raised:  # any error: the other processes must be told
        error = raised
    fail_together(error, gather(None if error is None else described(error)))
    return found


def described(error: Exception) -> list[str]:
    """An error as [kind, message] for the other processes (`fail_together`)."""
    for kind in (UserError, Unavailable):
        if isinstance(error, kind):
            return [kind.__name__, str(error)]
    if away(error):
        return [Unavailable.__name__, first_line(error)]
    line = first_line(error)
    return [FailedElsewhere.__name__, line if line == type(error).__name__ else f"{type(error).__name__}: {line}"]


def fail_together(error: Exception | None, failures: Sequence[list[str] | None]) -> None:
    """Raise this process's own `error`, or else the first of `failures` (`described` errors by process); return if all are
    None."""
    if error is not None:
        raise error
    for process, failure in enumerate(failures):
        if failure is not None:
            kind, line = failure
            for known in (UserError, Unavailable):
                if kind == known.__name__:
                    raise known(line)
            raise FailedElsewhere(f"process {process}: {line}")


def first_decides(find: Callable[[], Found]) -> Found:
    """Call `find` in the first process and return its JSON-serialisable result in all of them. If it fails, all raise.

    For example, a file of a network file system may already be visible to one host and not yet to another.
    """
    found = together(lambda: find() if first_process() else None)
    return gather(found)[0]


def first_acts(act: Callable[[], Any]) -> None:
    """Call `act` in the first process; the others wait until it is done. If it fails, all raise."""
    together(lambda: act() if first_process() else None)


def first_reads(read: Callable[[], dict[str, np.ndarray] | None]) -> dict[str, np.ndarray] | None:
    """Call `read` in the first process and broadcast the arrays (or None) to all. If it fails, all raise."""
    found = together(lambda: read() if first_process() else None)
    if jax.process_count() == 1:
        return found
    shapes = gather(None if found is None else {name: [x.shape, x.dtype.str] for name, x in found.items()})[0]
    if shapes is None:
        return None
    from jax.experimental import multihost_utils

    arrays = {}
    for name, (shape, dtype) in shapes.items():
        size = math.prod(shape) * np.dtype(dtype).itemsize
        mine = np.zeros(size, np.uint8) if found is None else np.frombuffer(found[name].tobytes(), np.uint8)
        arrays[name] = np.asarray(multihost_utils.broadcast_one_to_all(mine)).view(dtype).reshape(shape)
    return arrays


def same_everywhere(values: Mapping[str, Any], what: str) -> None:
    """UserError in every process if the JSON-serialisable `values` differ between processes; it names the first difference."""
    first, *others = gather(dict(values))
    for process, other in enumerate(others, 1):
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{what}: {name} is {first.get(name)!r} for process 0 and {other.get(name)!r} for process {process}; all"
                    " hosts must have the same files and settings"
                )
