"""Applies an experiment's `data` and `batch` sections: row budgets, number of rows, lists of what is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.packing import auto_budget
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.progress import say

UNLIMITED = 2**31 - 1
LEFT_OUT_FILE = "left_out_groups.txt"


def count_rows(rows: Rows, experiment: config.Experiment) -> int:
    """The number of rows of the whole run. UserError if it is 0, because the sets' weights are too small."""
    run, named = experiment.run, experiment.data.named
    if run.steps is not None:
        return run.steps * experiment.batch.rows
    if count := rows.count(run.epochs):
        return count
    raise UserError(
        f"{named}: {run.epochs} epochs (run.epochs) see none of the {len(rows.index.groups)} groups, because the weights of the"
        f" sets are so small (at most {rows.index.weights.max():g}); raise the weights or run.epochs, or set run.steps"
    )


def list_changes(index: GroupIndex, named: str, count: int) -> None:
    """Print how many of the data set's `count` groups are left out or made smaller, and the first of them."""
    _list(f"{named}: left out {len(index.dropped)} of {count} groups", index.dropped)
    _list(f"{named}: made {len(index.cut)} of {count} groups smaller", index.cut)


def _list(heading: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    say(f"{heading}:")
    for line in lines[:20]:
        say(f"  {line}")
    if len(lines) > 20:
        say(f"  ... and {len(lines) - 20} more")


def write_left_out(index: GroupIndex, directory: epath.Path) -> None:
    """Write a file in `directory` that lists all groups that are left out or made smaller, if there are any, with reasons."""
    path = directory / LEFT_OUT_FILE
    lines = [*(f"left out: {line}" for line in index.dropped), *(f"made smaller: {line}" for line in index.cut)]
    if not lines:
        retried(lambda: path.unlink(missing_ok=True), f"{path}")
        return
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    say(f"{path} lists all groups that are left out ({len(index.dropped)}) or made smaller ({len(index.cut)})")


def demanded_budget(batch: config.Batch) -> Budget:
    """The budgets that the experiment sets; the others are UNLIMITED."""
    given = [getattr(batch, name) for name in Budget.names()]
    return Budget(*(UNLIMITED if g is None else g for g in given))


def row_budget(batch: config.Batch, index: GroupIndex) -> Budget:
    """The budgets that the experiment sets; the others are derived from the groups that fit into its slots (`auto_budget`)."""
    fitting = index.sizes[index.sizes[:, 0] <= batch.slots]
    derived = auto_budget(fitting, batch.slots)
    given = [getattr(batch, name) for name in Budget.names()]
    return Budget(*(int(d if g is None else g) for g, d in zip(given, derived, strict=True)))


def index_cache(examples) -> epath.Path | None:
    """The directory for cached indexes, inside a built data set; None for source files."""
    base = examples
    while hasattr(base, "examples"):  # overlays can be nested
        base = base.examples
    return base.directory / "index" if isinstance(base, BuiltExamples) else None


def with_reference(rows: Rows, logps: np.ndarray) -> Rows:
    return dataclasses.replace(rows, reference_logps=logps)
