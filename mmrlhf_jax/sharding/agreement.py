"""What several processes do as one. One that took a decision alone would leave the others in a collective for ever.

Every process calls these at the same place, in the same order.
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
    """Another process of the run failed, with the error that the message has."""


def first_process() -> bool:
    """Whether this process writes what all of them have: configuration, metrics."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order. They are what JSON can say."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils  # only where there are several processes

    mine = np.frombuffer(strict_json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(len(mine)))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(mine)] = mine
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [strict_json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def together(act: Callable[[], Found]) -> Found:
    """Do it in every process. Where it failed in one it fails in all: with the own error, or else with the first other's."""
    found, error = None, None
    try:
        found = act()
    except Exception as raised:  # whatever it is, the others have to hear of it
        error = raised
    fail_together(error, gather(None if error is None else described(error)))
    return found


def described(error: Exception) -> list[str]:
    """An error for the other processes: what kind it is, and its line."""
    for kind in (UserError, Unavailable):
        if isinstance(error, kind):
            return [kind.__name__, str(error)]
    if away(error):
        return [Unavailable.__name__, first_line(error)]
    line = first_line(error)
    return [FailedElsewhere.__name__, line if line == type(error).__name__ else f"{type(error).__name__}: {line}"]


def fail_together(error: Exception | None, failures: Sequence[list[str] | None]) -> None:
    """Raise `error`, this process's own, or else what `described` the first other's; nothing where all are None."""
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
    """What the first process finds, in all of them: a file may be there for one host and not yet for another.

    It is what JSON can say. Where the first process fails, all do.
    """
    found = together(lambda: find() if first_process() else None)
    return gather(found)[0]


def first_acts(act: Callable[[], Any]) -> None:
    """The first process does it, and the others wait until it is done. Where it fails, all do."""
    together(lambda: act() if first_process() else None)


def first_reads(read: Callable[[], dict[str, np.ndarray] | None]) -> dict[str, np.ndarray] | None:
    """The arrays that the first process reads, or None, in all of them: the others do not look into the file."""
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
    """UserError, in every process, that names the first of the values that is not the same in all of them."""
    first, *others = gather(dict(values))
    for process, other in enumerate(others, 1):
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                raise UserError(
                    f"{what}: {name} is {first.get(name)!r} for process 0 and {other.get(name)!r} for process {process}; all"
                    " hosts must have the same files and settings"
                )
