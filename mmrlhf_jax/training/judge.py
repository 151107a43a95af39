"""Judging a run on held-out data, and the score by which its best checkpoint is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.progress import say
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.held_out import evaluate
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.step import make_eval_step


class Judge:
    """Evaluates the model on held-out data after the last step and, if `run.eval_every` is set, after every so many steps."""

    def __init__(self, experiment: config.Experiment, graphdef: nnx.GraphDef, rows: Rows, mesh, steps: int):
        """`rows` are the held-out data; `steps` is the number of steps of the whole run."""
        self._run, self._task, self._rows, self._steps = experiment.run, task_of(experiment.objective), rows, steps
        batch, reference = experiment.batch, self._task.reference
        self._eval_step = make_eval_step(graphdef, self._task, chunk=batch.logprob_chunk, reference=reference)
        piece = batch.rows // batch.accumulation
        self._settings = dict(batch_rows=piece, mesh=mesh, workers=experiment.data.workers)

    def due(self, done: int) -> bool:
        """Whether the model is judged after `done` steps."""
        every = self._run.eval_every
        return done == self._steps or (every is not None and done % every == 0)

    def figures(self, state: TrainState, at_batch: Callable[[int], None]) -> dict[str, Any]:
        """Loss and metrics over all held-out data; `at_batch` is called with the number of every batch."""
        return evaluate(self._eval_step, state, self._rows, self._task, at_batch=at_batch, **self._settings)

    def score(self, figures: dict[str, Any], step: int) -> float | None:
        """The number that chooses the best checkpoint (higher is better). None, with a message, if it is not finite."""
        figure = figures[self._run.best]
        if not math.isfinite(figure):
            say(f"step {step}: {self._run.best} is {figure}, which is no score: this step cannot be the best one")
            return None
        return -figure if self._run.best_is == "lowest" else figure
