"""What several processes do as one. One that took a decision alone would leave the others in a collective for ever.

Every process calls these at the same place, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError

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
    failures = gather(None if error is None else [isinstance(error, UserError), _line(error)])
    if error is not None:
        raise error
    for process, failure in enumerate(failures):
        if failure is not None:
            by_user, line = failure
            raise UserError(line) if by_user else FailedElsewhere(f"process {process}: {line}")
    return found


def first_decides(find: Callable[[], Found]) -> Found:
    """What the first process finds, in all of them: a file may be there for one host and not yet for another.

    It is what JSON can say. Where the first process fails, all do.
    """
    found = together(lambda: find() if first_process() else None)
    return gather(found)[0]


def first_acts(act: Callable[[], Any]) -> None:
    """The first process does it, and the others wait until it is done. Where it fails, all do."""
    together(lambda: act() if first_process() else None)


def _line(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
