"""The batches of a run, how many of them there are, and what is written meanwhile."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from mmrlhf_jax.config.values import Count
from mmrlhf_jax.sections import Integer, Section, WrittenPath


class Batch(Section):
    """The global batch: `rows` rows of `slots` slots. What is None is derived from the data (`packing.auto_budget`).

    `accumulation`: in how many pieces a step takes the rows, whatever the launch file says. None is derived from the launch
    file's `rows_per_device` (`training.layout.with_accumulation`).
    """

    rows: Count = 8
    slots: Count = 8192
    tiles: Count | None = None
    visual: Count | None = None
    targets: Count | None = None
    responses: Count | None = None
    pairs: Count | None = None
    accumulation: Count | None = None
    logprob_chunk: Count = 256

    @pydantic.model_validator(mode="after")
    def _divides(self):
        if self.accumulation is not None and self.rows % self.accumulation:
            raise ValueError(f"batch.rows {self.rows} must be a multiple of batch.accumulation {self.accumulation}")
        return self


class Run(Section):
    """`epochs` passes over the data, or exactly `steps` steps where that is given.

    The newest `keep` checkpoints stay, and the best one by `best` (a held-out metric) where there is held-out data.
    `profile_at` is the step from which `profile_steps` steps are traced for TensorBoard's profiler. `wandb` names a
    project of Weights & Biases to log to as well.
    """

    directory: WrittenPath
    seed: Annotated[Integer, Field(ge=0)] = 42
    epochs: Count = 1
    steps: Count | None = None
    log_every: Count = 1
    checkpoint_every: Count = 500
    keep: Count = 2
    eval_every: Count | None = None
    best: str = "eval_loss"
    best_is: Literal["lowest", "highest"] = "lowest"
    profile_at: Annotated[Integer, Field(ge=0)] | None = None
    profile_steps: Count = 3
    wandb: str | None = None
