"""The sections `batch` and `run`: the global batch, the length of a run, checkpoints, evaluation and logs."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from mmrlhf_jax.config.values import Count
from mmrlhf_jax.sections import Section
from mmrlhf_jax.setting_types import Integer, WrittenPath


class Batch(Section):
    """The global batch: `rows` rows of `slots` slots. Other sizes that are None are derived from the data
    (`packing.auto_budget`).

    `accumulation` is the number of pieces of gradient accumulation. None derives it from the launch file's `rows_per_device`
    (`training.layout.with_accumulation`); a number takes precedence over that.
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
    """A run makes `epochs` passes over the data or, if that is set, exactly `steps` steps.

    The newest `keep` checkpoints are kept and, with held-out data, the best one by the metric `best`. From step `profile_at`
    on, `profile_steps` steps are traced for TensorBoard's profiler. `wandb` is a Weights & Biases project to log to as well.
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
