"""The catalogue: 27 benchmarks in nine dimensions, and the 8 tasks of the safety suite."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.catalogue import conversation, hallucination, knowledge, reasoning, safety, video
from mmrlhf_jax.suite.task import Benchmark, Row, Task

# In the order of the paper's tables.
GENERAL: tuple[Benchmark, ...] = (
    *conversation.BENCHMARKS,
    *knowledge.BENCHMARKS,
    *reasoning.REAL_WORLD,
    *reasoning.MATH,
    *hallucination.BENCHMARKS,
    *video.BENCHMARKS,
    *reasoning.MULTI_IMAGE,
)
SAFETY: tuple[Benchmark, ...] = safety.BENCHMARKS
BENCHMARKS: tuple[Benchmark, ...] = GENERAL + SAFETY

TASKS: Mapping[str, Task] = {task.name: task for benchmark in BENCHMARKS for task in benchmark.tasks}
ROWS: Mapping[str, Row] = {row.name: row for benchmark in BENCHMARKS for row in benchmark.rows}


def find(name: str) -> tuple[Task, ...]:
    """The tasks of this name: those of a benchmark, or a single one. UserError for a name that there is not."""
    found = {benchmark.name: benchmark.tasks for benchmark in BENCHMARKS} | {each: (task,) for each, task in TASKS.items()}
    if name in found:
        return found[name]
    if name in {benchmark.dimension for benchmark in BENCHMARKS}:
        raise UserError(f"{name}: is no benchmark but a dimension: --dimensions {name}")
    near = difflib.get_close_matches(name, found, n=1)
    hint = f" did you mean {near[0]}?" if near else ""
    raise UserError(f"{name}: is no benchmark;{hint} `mmrlhf eval benchmarks --list` names all")
