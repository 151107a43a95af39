"""Pools of spawned processes that end when their parent process dies."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

# Spawned, not forked: the parent may have threads (of JAX, of Grain).
CONTEXT = multiprocessing.get_context("spawn")


def spawn_pool(jobs: int, adopt: Callable[[Any], None], what: Any) -> ProcessPoolExecutor:
    """`jobs` processes, each of which calls `adopt(what)` once before its first task."""
    return ProcessPoolExecutor(jobs, CONTEXT, _begin, (adopt, what))


def _begin(adopt: Callable[[Any], None], what: Any) -> None:
    # A killed parent cannot shut down its pool; without this thread, the pool's processes would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    adopt(what)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
