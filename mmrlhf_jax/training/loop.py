"""`mmrlhf train`: one straight line from an experiment to a finished run directory. One loop serves every objective."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mmrlhf_jax import config, sections
from mmrlhf_jax.data.pipeline import (
    all_rows,
    index_cache,
    make_encoder,
    open_held_out_examples,
    open_training_examples,
    plan_training_rows,
    with_reference,
    write_left_out,
)
from mmrlhf_jax.data.stream import Rows, batches
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import can_write, matching, write_atomically
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.load import load_model, load_tokenizer
from mmrlhf_jax.huggingface.sizes import known_sizes
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.models.lora import with_reduce_dtype
from mmrlhf_jax.objectives.weighted import merge, summary
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import first_acts, first_process, together
from mmrlhf_jax.sharding.exits import PEER_LOST, SIGNALLED
from mmrlhf_jax.sharding.mesh import check_layout, make_mesh, say_waste, use_mesh
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.feed import agree, feed, own_rows
from mmrlhf_jax.training.goodput import Goodput
from mmrlhf_jax.training.identity import computed_precision, run_identity
from mmrlhf_jax.training.metrics import MetricsLog
from mmrlhf_jax.training.objective import make_objective
from mmrlhf_jax.training.optimizer import learning_rate_at, make_optimizer
from mmrlhf_jax.training.owner import owned
from mmrlhf_jax.training.peers import COMPILING, MEASURING, Peers, coordinator_lines
from mmrlhf_jax.training.profiler import ProfilerWindow
from mmrlhf_jax.training.record import Pending, Recorder, as_number, bad_batch_file, record
from mmrlhf_jax.training.reference import make_scoring_step, model_fingerprint, reference_logps
from mmrlhf_jax.training.run_page import PAGE, write_run_page
from mmrlhf_jax.training.state import TrainState, init_state, precision_line, split_model, stored_dtype, with_adapters
from mmrlhf_jax.training.step import Reference, make_eval_step, make_train_step, mean_loss
from mmrlhf_jax.training.stop import StopSignal, Vote

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"


def train(experiment: config.Experiment, launch: config.Launch, *, fresh: bool = False) -> TrainState:
    """Run an experiment to its end, from its newest checkpoint if it has one (unless `fresh`).

    Raises UserError for whatever is wrong with the configuration, model or data, before the first step; and when a loss is
    not finite, with the batch saved for replay.
    """
    experiment = config.with_absolute_paths(experiment)
    run, goodput = experiment.run, Goodput()
    directory = epath.Path(run.directory)
    mesh = make_mesh(launch.mesh.model_dump())
    sizes = known_sizes(experiment.model.path)
    check_layout(experiment, sizes, mesh.shape)
    say_waste(experiment, sizes, mesh.shape)
    limits = launch.distributed or config.Distributed()
    lines = coordinator_lines() if jax.process_count() > 1 else None
    peers = Peers(lines, jax.process_index(), jax.process_count(), limits.heartbeat_timeout, limits.hang_timeout)
    with (
        owned(directory) as still_owned,
        use_mesh(mesh),
        matmul_precision(experiment.model.dtype),
        StopSignal() as stop,
        peers,
        ends_if_alone(peers),
    ):
        # --- Model -----------------------------------------------------------------------------------------------------
        source = local_directory(experiment.model.path)
        tokenizer = load_tokenizer(source)
        model = load_base(experiment, mesh)

        # --- Data ------------------------------------------------------------------------------------------------------
        peers.at(0, MEASURING)
        encoder = make_encoder(experiment.data, experiment.objective, tokenizer, model.config)
        examples = open_training_examples(experiment.data, experiment.objective)
        rows = plan_training_rows(examples, encoder, experiment.data, experiment.batch, experiment.objective, seed=run.seed)
        total_rows = rows.count(run.epochs) if run.steps is None else run.steps * experiment.batch.rows
        steps = -(-total_rows // experiment.batch.rows)
        say(
            f"{len(rows.index.groups)} groups in {rows.count(1)} rows of {rows.budget.slots} slots"
            f" ({rows.fill:.1%} filled), {steps} steps of {experiment.batch.rows} rows"
        )

        # --- Reference -------------------------------------------------------------------------------------------------
        graphdef, params, frozen = split_model(model, experiment.trains, experiment.lora)
        say(precision_line(params, frozen, experiment.model.dtype))
        held_out = held_out_rows(experiment, encoder)
        reference = reference_mode(experiment.objective)
        if isinstance(experiment.objective, config.Preference) and reference is None:
            scoring = make_scoring_step(graphdef, chunk=experiment.batch.logprob_chunk)
            scorer = model_fingerprint(source, **computed_precision(experiment))
            settings = dict(batch_rows=experiment.batch.rows // experiment.batch.accumulation, mesh=mesh)
            settings["cache"] = reference_cache(examples, directory)
            settings["at_batch"] = lambda done: peers.at(0, f"computing reference log-probs, batch {done}")
            rows = with_reference(rows, reference_logps(scoring, params, frozen, rows.once(), scorer, **settings))
            if held_out is not None:
                held_out = with_reference(held_out, reference_logps(scoring, params, frozen, held_out, scorer, **settings))

        peers.at(0, "preparing the first step")
        # --- State: fresh, or where an earlier run of the same experiment stopped ----------------------------------------
        objective = make_objective(experiment.objective)
        tx = make_optimizer(experiment.optimizer, steps, experiment.guard)
        state = init_state(params, frozen, tx, mesh, keep_start=reference == "live")
        identity = run_identity(experiment, rows, steps, source)
        if fresh:
            first_acts(lambda: clear(directory))
        checkpoints = Checkpoints(directory / CHECKPOINTS, keep=run.keep)
        if checkpoints.latest is not None:
            state = checkpoints.restore(state, identity)
            say(f"resumed from step {int(state.step)} of {steps} in {directory}")
        first_acts(lambda: write_settings(experiment, rows, directory))

        # --- Steps -----------------------------------------------------------------------------------------------------
        train_step = make_train_step(
            graphdef,
            objective,
            tx,
            chunk=experiment.batch.logprob_chunk,
            accumulation=experiment.batch.accumulation,
            seed=run.seed,
            reference=reference,
            patches=model.config.vision.patches,
            shardings=jax.tree.map(lambda x: x.sharding, state),
        )
        eval_step = make_eval_step(graphdef, objective, chunk=experiment.batch.logprob_chunk, reference=reference)
        start = first = int(state.step)
        log = together(lambda: open_log(experiment, directory, start))
        goodput.follows(log.found, log.kept)

        def write_page() -> None:
            if first_process():
                write_run_page(directory, experiment, done=start, steps=steps, goodput=goodput.figures())

        recorder = Recorder(
            experiment,
            model.config,
            log,
            directory,
            steps=steps - start,
            rate=partial(learning_rate_at, experiment.optimizer, steps),
            epochs=lambda done: rows.epochs(min(done * experiment.batch.rows, total_rows)),  # the last batch may be filled up
            goodput=goodput,
            records=examples.records,
        )
        profiler = ProfilerWindow(directory / "profile", run.profile_at, run.profile_steps)
        stream = batches(
            rows,
            batch_rows=experiment.batch.rows,
            steps=steps,
            total=total_rows,
            start=start,
            workers=experiment.data.workers,
            mine=own_rows(mesh, experiment.batch.rows),
        )
        pending: Pending | None = None
        stopping, vote = False, Vote(mesh)
        stop.steps_begin()
        goodput.started()
        try:
            for batch in goodput.waiting(feed(stream, mesh)):
                peers.at(start, COMPILING if start == first else "in step")
                profiler.before(start)
                previous, pending = pending, Pending(start, batch)
                with goodput.part("compile") if start == first else contextlib.nullcontext():
                    state, pending.figures = train_step(state, batch)
                start += 1
                stopping = vote.stops(stop.requested)
                still_owned()
                if previous is not None:  # read one step late: the device never waits for the host
                    record(previous, recorder)
                    profiler.after(previous.step + 1)
                due = start % run.checkpoint_every == 0 or start == steps or stopping
                judged = held_out is not None and run.eval_every and (start % run.eval_every == 0 or start == steps)
                if due or judged:
                    # First the figures: a run that is cut off here must not continue from a step that has none.
                    record(pending, recorder, always=True)
                    profiler.after(start)
                    pending = score = None
                    if judged:
                        with goodput.part("evaluation"):
                            at_batch = lambda number, step=start: peers.at(step, f"evaluating batch {number}")
                            figures = evaluate(eval_step, state, held_out, objective, experiment, mesh, at_batch)
                        log.write(start, figures | goodput.figures())
                        score = run_score(figures, run)
                    if due or (score is not None and score > max(checkpoints.scores.values(), default=-float("inf"))):
                        peers.at(start, "saving a checkpoint")
                        with goodput.part("checkpoint"):
                            log.flush()
                            checkpoints.save(state, identity, score=score)
                            write_page()
                    recorder.restart_clock()
                if stopping:
                    break
                peers.at(start, "waiting for data")
            if pending is not None:
                record(pending, recorder)
            checkpoints.wait()
            peers.finished = True
        except LOST_PEER as error:
            end_if_alone(peers, error)  # before what is below waits for the process that is gone
            raise
        finally:
            profiler.close()
            stream.close()
            checkpoints.close()
            log.close()
            write_page()
        if stopping and start < steps:
            say(f"stopped by a signal after step {start}; the same command continues from there")
            raise SystemExit(SIGNALLED)
    return state


def load_base(experiment: config.Experiment, mesh) -> LlavaOnevision:
    """The model that the experiment starts from. A head that its checkpoint lacks, and adapters, are drawn from the seed."""
    settings = experiment.model
    model = load_model(
        settings.path,
        mesh=mesh,
        dtype=jnp.dtype(settings.dtype),
        param_dtype=stored_dtype(settings, experiment.trains, experiment.lora),
        remat=settings.remat,
        attention=settings.attention,
        reward_head=settings.reward_head,
        seed=experiment.run.seed,
    )
    return with_reduce_dtype(with_adapters(model, experiment.lora, experiment.run.seed), settings.reduce_dtype)


def reference_mode(objective: config.Objective) -> Reference:
    """Whether steps compute the reference themselves, and how."""
    if not isinstance(objective, config.Preference) or objective.reference == "cached":
        return None
    return objective.reference


def reference_cache(examples, directory: epath.Path) -> epath.Path:
    """Beside the data, where other runs find them too; in the run's directory where the data has no such place."""
    beside = index_cache(examples)
    if beside is None or not agree(can_write(beside)):
        return directory / "reference"
    return beside


def run_score(figures: dict[str, Any], run: config.Run) -> float:
    """The number that best checkpoints are chosen by, higher is better. UserError where the evaluation has no such metric."""
    if run.best not in figures:
        known = ", ".join(name for name, value in figures.items() if isinstance(value, float))
        raise UserError(f"run.best: the evaluation has no metric {run.best!r}; there are {known}")
    return -figures[run.best] if run.best_is == "lowest" else figures[run.best]


def held_out_rows(experiment: config.Experiment, encoder) -> Rows | None:
    """Rows over the held-out data, if the experiment names any. Their β needs rewards only where they are there."""
    data = experiment.data
    if data.held_out is None:
        return None
    examples = open_held_out_examples(data, experiment.objective)
    return all_rows(examples, encoder, slots=experiment.batch.slots, seed=experiment.run.seed)


def evaluate(
    eval_step,
    state: TrainState,
    rows: Rows,
    objective,
    experiment: config.Experiment,
    mesh,
    at_batch: Callable[[int], None] = lambda number: None,
) -> dict[str, float]:
    """Loss and metrics over all held-out groups, as exact means, under the prefix `eval_` (as TRL logs them).

    `at_batch` is called with the number of every batch.
    """
    count, batch_rows = rows.count(1), experiment.batch.rows // experiment.batch.accumulation
    mine = own_rows(mesh, batch_rows)
    stream = batches(rows, batch_rows=batch_rows, steps=-(-count // batch_rows), total=count, mine=mine)
    results = []
    for number, batch in enumerate(feed(stream, mesh)):
        at_batch(number)
        results.append(eval_step(state, batch))
    sums, metrics = reduce(lambda a, b: (merge(a[0], b[0]), merge(a[1], b[1])), results)
    figures = summary(metrics) | {"loss": mean_loss(objective, sums)}
    return {f"eval_{name}": as_number(value) for name, value in figures.items()}


def write_settings(experiment: config.Experiment, rows: Rows, directory: epath.Path) -> None:
    """What a run's directory says of it before its first step: the resolved configuration, and what of the data is left out."""
    write_atomically(directory / CONFIG_FILE, sections.resolved(experiment).encode())
    write_left_out(rows.index, directory)


def open_log(experiment: config.Experiment, directory: epath.Path, start: int) -> MetricsLog:
    """The run's logs, from step `start` on; of the first process alone."""
    settings = experiment.model_dump(mode="json")
    return MetricsLog(directory, resume_step=start, wandb=experiment.run.wandb, settings=settings, writes=first_process())


# How a collective fails whose other end is gone; gloo's failures are ValueErrors where they are dispatched.
LOST_PEER = (jax.errors.JaxRuntimeError, ValueError)


@contextlib.contextmanager
def ends_if_alone(peers: Peers) -> Iterator[None]:
    try:
        yield
    except LOST_PEER as error:
        end_if_alone(peers, error)
        raise


def end_if_alone(peers: Peers, error: Exception) -> None:
    """A collective that fails because a process is gone: say which, and end so that launchers start all of them again.

    At once: an orderly end would first wait for the process that is gone.
    """
    lost = peers.lost()
    if lost is not None:
        say(f"{str(error).strip().splitlines()[0][:160]}: {lost}; the same command continues from the newest checkpoint")
        sys.stdout.flush()
        os._exit(PEER_LOST)


def clear(directory: epath.Path) -> None:
    """Remove what an earlier run of this directory left: checkpoints, metrics and their page, bad batches; nothing else."""
    for name in (CHECKPOINTS, "tensorboard"):
        if (directory / name).exists():
            say(f"--fresh: removing {directory / name}")
            (directory / name).rmtree()
    for path in [directory / "metrics.jsonl", directory / PAGE, *matching(directory, bad_batch_file("*"))]:
        path.unlink(missing_ok=True)
