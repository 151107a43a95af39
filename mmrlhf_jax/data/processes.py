"""Spawned processes that end when their parent process dies, and pools of them."""

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
    end_with_parent()
    adopt(what)


def end_with_parent() -> None:
    """End this process when its parent does. A killed parent cannot tell it, and it would work or wait for work for ever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
