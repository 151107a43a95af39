"""A run in progress: its steps, and the recording, judging and saving between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import jax
from etils import epath
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.cleanup import Cleanup
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.data.stream import batches
from mmrlhf_jax.sharding.agreement import first_process, together
from mmrlhf_jax.sharding.feed import feed, own_rows
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.base import Base
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.goodput import Goodput
from mmrlhf_jax.training.judge import Judge
from mmrlhf_jax.training.metrics import MetricsLog, open_log
from mmrlhf_jax.training.optimizer import learning_rate_at
from mmrlhf_jax.training.page import write_run_page
from mmrlhf_jax.training.peers import COMPILING, Peers
from mmrlhf_jax.training.planned import PlannedRun
from mmrlhf_jax.training.profiler import ProfilerWindow
from mmrlhf_jax.training.record import Pending, Recorder, record
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.step import Step, make_train_step


class Run:
    """A run in progress: its train step, data stream, logs, checkpoints and judge.

    `state` is the state after `done` of `steps` steps. The figures of a step are read from the device while the next step runs,
    so that the device does not wait for the host; only before the model is judged or saved they are read at once.
    """

    def __init__(
        self,
        experiment: config.Experiment,
        plan: PlannedRun,
        base: Base,
        state: TrainState,
        checkpoints: Checkpoints,
        *,
        mesh: Mesh,
        goodput: Goodput,
        peers: Peers,
        cleanup: Cleanup,
    ):
        """`state` is the state that the run begins with. `cleanup` closes what is opened here."""
        self.state, self.done, self.steps = state, int(state.step), plan.steps
        self._first = self.done
        self._pending: Pending | None = None  # the step that was started last
        self._previous: Pending | None = None  # the one before
        self._experiment, self._plan, self._mesh = experiment, plan, mesh
        self._checkpoints, self._goodput, self._peers = checkpoints, goodput, peers
        self._directory = epath.Path(experiment.run.directory)
        self._step = _train_step(experiment, base, state)
        self._judge = None if plan.held_out is None else Judge(experiment, base.graphdef, plan.held_out, mesh, plan.steps)
        self._log = together(lambda: open_log(experiment, self.done))
        goodput.follows(self._log.found, self._log.kept)
        cleanup.add("the run's page", self._write_page)
        cleanup.add("the logs", self._log.close)
        self._recorder = _recorder(experiment, plan, base, self._log, goodput, self.done)
        self._stream = _stream(experiment, plan, mesh, self.done)
        cleanup.add("the data's workers", self._stream.close)
        run = experiment.run
        self._profiler = ProfilerWindow(self._directory / "profile", run.profile_at, run.profile_steps)
        cleanup.add("the profile", self._profiler.close)

    def batches(self) -> Iterator[RowBatch]:
        """Yield the batches of the remaining steps, placed on the devices."""
        for batch in self._goodput.waiting(feed(self._stream, self._mesh)):
            yield batch
            self._peers.at(self.done, "waiting for data")

    def step(self, batch: RowBatch) -> None:
        """Dispatch the next step, without waiting for its result."""
        is_first = self.done == self._first
        self._peers.at(self.done, COMPILING if is_first else "in step")
        self._profiler.before(self.done)
        self._previous, self._pending = self._pending, Pending(self.done, batch)
        with self._goodput.part("compile") if is_first else contextlib.nullcontext():
            self.state, self._pending.figures = self._step(self.state, batch)
        self.done += 1

    def record_previous(self) -> None:
        """Write the figures of the step before the one that is running."""
        if self._previous is not None:
            record(self._previous, self._recorder)
            self._profiler.after(self._previous.step + 1)
            self._previous = None

    def judge(self) -> float | None:
        """Judge the model on held-out data if that is due.

        Returns the score that chooses the best checkpoint; None if nothing was judged or the score is not finite.
        """
        if self._judge is None or not self._judge.due(self.done):
            return None
        self._record_last()
        with self._goodput.part("evaluation"):
            figures = self._judge.figures(self.state, lambda n: self._peers.at(self.done, f"evaluating batch {n}"))
        self._log.write(self.done, figures | self._goodput.figures())
        score = self._judge.score(figures, self.done)
        self._recorder.restart_clock()
        return score

    def save(self, score: float | None, *, stopping: bool) -> None:
        """Save a checkpoint if one is due, if the run is `stopping`, or if the score is the best so far."""
        due = stopping or self.done == self.steps or self.done % self._experiment.run.checkpoint_every == 0
        if not due and not self._is_best(score):
            return
        self._record_last()
        self._peers.at(self.done, "saving a checkpoint")
        with self._goodput.part("checkpoint"):
            self._log.flush()
            self._checkpoints.save(self.state, self._plan.identity, score=score)
            self._write_page()
        self._recorder.restart_clock()

    def finish(self) -> None:
        """Wait for the last checkpoint. After that, this process's end is not treated as a failure by the others."""
        self._checkpoints.wait()
        self._peers.finished = True

    def _record_last(self) -> None:
        """Write the figures of the last step, if they are not written yet, even if `run.log_every` would skip it.

        Metrics are written before the checkpoint, so that no restored step lacks a metrics line.
        """
        if self._pending is not None:
            record(self._pending, self._recorder, always=True)
            self._profiler.after(self.done)
            self._pending = None

    def _is_best(self, score: float | None) -> bool:
        return score is not None and score > max(self._checkpoints.scores.values(), default=-float("inf"))

    def _write_page(self) -> None:
        """Write `report.html` from the metrics so far, in the first process only."""
        if first_process():
            figures = self._goodput.figures()
            write_run_page(self._directory, self._experiment, done=self.done, steps=self.steps, goodput=figures)


def _train_step(experiment: config.Experiment, base: Base, state: TrainState) -> Step:
    task, batch = task_of(experiment.objective), experiment.batch
    return make_train_step(
        base.graphdef,
        task,
        base.tx,
        chunk=batch.logprob_chunk,
        accumulation=batch.accumulation,
        seed=experiment.run.seed,
        reference=task.reference,
        features=base.sizes.geometry.features,
        shardings=jax.tree.map(lambda x: x.sharding, state),
    )


def _stream(experiment: config.Experiment, plan: PlannedRun, mesh: Mesh, start: int):
    """A generator of this process's rows of all batches from step `start` on. It must be closed."""
    return batches(
        plan.rows,
        batch_rows=experiment.batch.rows,
        steps=plan.steps,
        total=plan.total_rows,
        start=start,
        workers=experiment.data.workers,
        mine=own_rows(mesh, experiment.batch.rows),
    )


def _recorder(
    experiment: config.Experiment, plan: PlannedRun, base: Base, log: MetricsLog, goodput: Goodput, start: int
) -> Recorder:
    def epochs(done: int) -> float:
        return plan.rows.epochs(min(done * experiment.batch.rows, plan.total_rows))  # the last batch may have padding rows

    return Recorder(
        experiment,
        base.sizes,
        log,
        epath.Path(experiment.run.directory),
        steps=plan.steps - start,
        rate=partial(learning_rate_at, experiment.optimizer, plan.steps),
        epochs=epochs,
        goodput=goodput,
        records=plan.examples.records,
    )
