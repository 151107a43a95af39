"""Times functions on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds_of(function: Callable, *arguments: Any, repeats: int = 5, calls: int = 1) -> float:
    """The median over `repeats` turns of the seconds of a call, after one call that compiles. With several `calls` to a turn,
    which the device runs one behind the other, the host's part of a call counts little."""
    jax.block_until_ready(function(*arguments))
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            last = function(*arguments)
        jax.block_until_ready(last)
        found.append((time.perf_counter() - started) / calls)
    return statistics.median(found)
