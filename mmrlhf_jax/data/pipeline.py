"""What an experiment's data and batch sections say of rows: encoder, budgets, counts, and what is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data import encode
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.examples import BuiltExamples
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.packing import auto_budget
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import write_atomically
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.progress import say

UNLIMITED = 2**31 - 1
LEFT_OUT_FILE = "left_out_groups.txt"


def make_encoder(
    data: config.Data,
    tokenizer,
    model: ModelConfig,
    *,
    task: Literal["answer", "critique"] = "answer",
    ties: bool = False,
) -> GroupEncoder:
    """The encoder for an experiment's data section, with targets and tied pairs as `GroupEncoder` explains them."""
    return encode.make_encoder(
        tokenizer,
        model,
        data.template,
        task=task,
        pairs=data.pairs,
        weighting=data.weighting,
        learn=data.learn,
        ties=ties,
    )


def count_rows(rows: Rows, experiment: config.Experiment) -> int:
    """Rows of the whole run. UserError where there are none, because the sets' weights are so small."""
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
    """Say which of the `count` groups of the data set are left out or not whole: their number, and the first of them."""
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
    """Every group that is left out or not whole, with the reason, one a line in `directory`; no file where there is none."""
    path = directory / LEFT_OUT_FILE
    lines = [*(f"left out: {line}" for line in index.dropped), *(f"made smaller: {line}" for line in index.cut)]
    if not lines:
        retried(lambda: path.unlink(missing_ok=True), f"{path}")
        return
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    say(f"{path} lists all groups that are left out ({len(index.dropped)}) or made smaller ({len(index.cut)})")


def demanded_budget(batch: config.Batch) -> Budget:
    """The experiment's budgets; what it leaves open is unlimited."""
    given = [getattr(batch, name) for name in Budget.names()]
    return Budget(*(UNLIMITED if g is None else g for g in given))


def row_budget(batch: config.Batch, index: GroupIndex) -> Budget:
    """The experiment's budgets; what it leaves open follows from the groups that fit its slots."""
    fitting = index.sizes[index.sizes[:, 0] <= batch.slots]
    derived = auto_budget(fitting, batch.slots)
    given = [getattr(batch, name) for name in Budget.names()]
    return Budget(*(int(d if g is None else g) for g, d in zip(given, derived, strict=True)))


def index_cache(examples) -> epath.Path | None:
    """Beside a built data set; a source file has no place of its own for it."""
    base = examples
    while hasattr(base, "examples"):  # overlays may lie on each other
        base = base.examples
    return base.directory / "index" if isinstance(base, BuiltExamples) else None


def with_reference(rows: Rows, logps: np.ndarray) -> Rows:
    return dataclasses.replace(rows, reference_logps=logps)
