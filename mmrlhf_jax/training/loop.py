"""`mmrlhf train`: one straight line from an experiment to a finished run directory. One loop serves every objective."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from mmrlhf_jax import config, sections
from mmrlhf_jax.cleanup import Cleanup
from mmrlhf_jax.data.pipeline import (
    count_rows,
    index_cache,
    with_reference,
    write_left_out,
)
from mmrlhf_jax.data.stream import Rows, batches
from mmrlhf_jax.exits import PEER_LOST, SIGNALLED, StoppedTogether
from mmrlhf_jax.faults import first_line, retried
from mmrlhf_jax.files import can_write, exists, matching, write_atomically
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.load import load_model, load_tokenizer, read_sizes
from mmrlhf_jax.inference.scoring import make_scoring_step
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.models.lora import with_reduce_dtype
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import first_acts, first_decides, first_process, same_everywhere, together
from mmrlhf_jax.sharding.feed import feed, own_rows
from mmrlhf_jax.sharding.mesh import use_mesh
from mmrlhf_jax.tasks import open_held_out_examples, open_training_examples, plan_training_rows, task_of
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.goodput import Goodput
from mmrlhf_jax.training.held_out import evaluate, fingerprint, plan_held_out, say_shared
from mmrlhf_jax.training.identity import CONFIGURATION, computed_precision, known_identity, run_identity
from mmrlhf_jax.training.metrics import MetricsLog
from mmrlhf_jax.training.optimizer import learning_rate_at, make_optimizer
from mmrlhf_jax.training.owner import owned
from mmrlhf_jax.training.page import PAGE, write_run_page
from mmrlhf_jax.training.peers import COMPILING, LOADING, MEASURING, Peers, coordinator_lines
from mmrlhf_jax.training.preflight import check_launch, check_metrics, check_profile, check_room, check_stored
from mmrlhf_jax.training.profiler import ProfilerWindow
from mmrlhf_jax.training.record import Pending, Recorder, bad_batch_file, record
from mmrlhf_jax.training.reference import reference_logps
from mmrlhf_jax.training.state import TrainState, init_state, precision_line, split_model, stored_dtype, with_adapters
from mmrlhf_jax.training.step import make_eval_step, make_train_step
from mmrlhf_jax.training.stop import StopSignal, Vote
from mmrlhf_jax.training.stored import Criterion

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"


def train(experiment: config.Experiment, launch: config.Launch, *, fresh: bool = False) -> TrainState:
    """Run an experiment to its end, from its newest checkpoint if it has one (unless `fresh`).

    Raises UserError for whatever is wrong with the configuration, model or data, before the first step, and what can be known
    early before anything that takes long; and when a loss is not finite, with the batch saved for replay.
    """
    experiment, mesh = check_launch(config.with_absolute_paths(experiment), launch)
    run, batch, goodput = experiment.run, experiment.batch, Goodput()
    directory = epath.Path(run.directory)
    if not fresh:
        check_stored(directory / CHECKPOINTS, known_identity(experiment))
        check_metrics(directory)
    limits = launch.distributed or config.Distributed()
    lines = coordinator_lines() if jax.process_count() > 1 else None
    peers = Peers(lines, jax.process_index(), jax.process_count(), limits.heartbeat_timeout, limits.hang_timeout)
    with (
        # These first, because an owner elsewhere may have to be watched for a minute.
        StopSignal() as stop,
        peers,
        ends_if_alone(peers),
        owned(directory) as still_owned,
        use_mesh(mesh),
        matmul_precision(experiment.model.dtype),
        Cleanup() as cleanup,
        ends_if_alone(peers),  # again, before the cleanup, which would wait for the process that is gone
    ):
        # --- Data: of the model no more than its tokenizer and sizes ------------------------------------------------------
        peers.at(0, MEASURING)
        plan = together(lambda: plan_run(experiment))
        examples, source, rows, held_out, total_rows, steps, identity = plan
        found = identity | {"held-out data": None if held_out is None else [held_out.index.fingerprint, held_out.identity]}
        same_everywhere({name: value for name, value in found.items() if name != CONFIGURATION}, "the run")
        if not fresh:
            check_stored(directory / CHECKPOINTS, identity)
        say(
            f"{len(rows.index.groups)} groups in {rows.count(1)} rows of {rows.budget.slots} slots"
            f" ({rows.fill:.1%} filled), {steps} steps of {batch.rows} rows"
        )

        # --- Model -----------------------------------------------------------------------------------------------------
        peers.at(0, LOADING)
        model = load_base(experiment, mesh)
        graphdef, params, frozen = split_model(model, experiment.trains, experiment.lora)
        say(precision_line(params, frozen, experiment.model.dtype))
        tx = make_optimizer(experiment.optimizer, steps, experiment.guard)
        together(lambda: check_room(directory, params, tx))

        # --- Reference -------------------------------------------------------------------------------------------------
        task = task_of(experiment.objective)
        piece = batch.rows // batch.accumulation
        if task.reference == "cached":
            scoring = make_scoring_step(graphdef, chunk=batch.logprob_chunk)
            scorer = model_fingerprint(source, **computed_precision(experiment))
            settings = dict(batch_rows=piece, mesh=mesh, workers=experiment.data.workers)
            settings["cache"] = reference_cache(examples, directory)
            settings["at_batch"] = lambda done: peers.at(0, f"computing reference log-probs, batch {done}")
            rows = with_reference(rows, reference_logps(scoring, params, frozen, rows.once(), scorer, **settings))
            if held_out is not None:
                held_out = with_reference(held_out, reference_logps(scoring, params, frozen, held_out, scorer, **settings))

        # --- State: fresh, or where an earlier run of the same experiment stopped ----------------------------------------
        peers.at(0, "preparing the first step")
        state = init_state(params, frozen, tx, mesh, keep_start=task.reference == "live")
        if fresh:
            first_acts(lambda: clear(directory))
        criterion = Criterion(run.best, run.best_is, None if held_out is None else fingerprint(held_out))
        checkpoints = Checkpoints(directory / CHECKPOINTS, keep=run.keep, criterion=criterion)
        cleanup.add("the checkpoints", checkpoints.close)
        if checkpoints.latest is not None:
            state = checkpoints.restore(state, identity)
            say(f"resumed from step {int(state.step)} of {steps} in {directory}")
            if int(state.step) == steps:
                judged = f"; {experiment.data.held_out} is judged behind a step that is made, and so not now"
                say(f"all {steps} steps are done: nothing is left to train{judged if held_out is not None else ''}")
        if held_out is not None and checkpoints.other_scores is not None:
            here = f"{criterion.figure} on {experiment.data.held_out}"
            say(f"{checkpoints.other_scores}; they are not compared with those by {here}")
        first_acts(lambda: write_settings(experiment, rows, directory))

        # --- Steps -----------------------------------------------------------------------------------------------------
        train_step = make_train_step(
            graphdef,
            task,
            tx,
            chunk=batch.logprob_chunk,
            accumulation=batch.accumulation,
            seed=run.seed,
            reference=task.reference,
            patches=model.config.vision.patches,
            shardings=jax.tree.map(lambda x: x.sharding, state),
        )
        eval_step = make_eval_step(graphdef, task, chunk=batch.logprob_chunk, reference=task.reference)
        start = first = int(state.step)
        log = together(lambda: open_log(experiment, directory, start))
        goodput.follows(log.found, log.kept)

        def write_page() -> None:
            if first_process():
                write_run_page(directory, experiment, done=start, steps=steps, goodput=goodput.figures())

        cleanup.add("the run's page", write_page)
        cleanup.add("the logs", log.close)
        recorder = Recorder(
            experiment,
            model.config,
            log,
            directory,
            steps=steps - start,
            rate=partial(learning_rate_at, experiment.optimizer, steps),
            epochs=lambda done: rows.epochs(min(done * batch.rows, total_rows)),  # the last batch may be filled up
            goodput=goodput,
            records=examples.records,
        )
        profiler = ProfilerWindow(directory / "profile", run.profile_at, run.profile_steps)
        stream = batches(
            rows,
            batch_rows=batch.rows,
            steps=steps,
            total=total_rows,
            start=start,
            workers=experiment.data.workers,
            mine=own_rows(mesh, batch.rows),
        )
        cleanup.add("the data's workers", stream.close)
        cleanup.add("the profile", profiler.close)
        pending: Pending | None = None
        stopping, vote = False, Vote(mesh)
        stop.steps_begin()
        goodput.started()
        for fed in goodput.waiting(feed(stream, mesh)):
            peers.at(start, COMPILING if start == first else "in step")
            profiler.before(start)
            previous, pending = pending, Pending(start, fed)
            with goodput.part("compile") if start == first else contextlib.nullcontext():
                state, pending.figures = train_step(state, fed)
            start += 1
            stopping = vote.stops(stop.requested)
            still_owned()
            if previous is not None:  # read one step late: the device never waits for the host
                record(previous, recorder)
                profiler.after(previous.step + 1)
            due = start % run.checkpoint_every == 0 or start == steps or stopping
            judging = held_out is not None and (start == steps or (run.eval_every and start % run.eval_every == 0))
            if due or judging:
                # First the figures: a run that is cut off here must not continue from a step that has none.
                record(pending, recorder, always=True)
                profiler.after(start)
                pending = score = None
                if judging:
                    with goodput.part("evaluation"):
                        at_batch = lambda number, step=start: peers.at(step, f"evaluating batch {number}")
                        settings = dict(batch_rows=piece, mesh=mesh, workers=experiment.data.workers, at_batch=at_batch)
                        figures = evaluate(eval_step, state, held_out, task, **settings)
                    log.write(start, figures | goodput.figures())
                    score = run_score(figures, run, start)
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
        if stopping and start < steps:
            say(f"stopped by a signal after step {start}; the same command continues from there")
            raise StoppedTogether(SIGNALLED)
    return state


class PlannedRun(NamedTuple):
    examples: Any
    source: epath.Path  # the model's directory
    rows: Rows
    held_out: Rows | None
    total_rows: int
    steps: int
    identity: dict[str, Any]


def plan_run(experiment: config.Experiment) -> PlannedRun:
    """What the run learns from, and how it will be fed, found without the model's weights."""
    run, batch = experiment.run, experiment.batch
    task = task_of(experiment.objective)
    examples = open_training_examples(experiment.data, task)
    task.check_examples(examples, experiment.data.named)
    judged = open_judged(experiment)
    if judged is not None:
        say_shared(examples, judged, experiment.data.held_out)
    source = local_directory(experiment.model.path)
    sizes = read_sizes(source, experiment.model.reward_head)
    encoder = task.encoder(experiment.data, load_tokenizer(source), sizes)
    rows = plan_training_rows(examples, encoder, experiment.data, batch, task, seed=run.seed)
    task.check_learnable(rows.index, examples, encoder, experiment.data, experiment.data.named)
    held_out = None if judged is None else plan_held_out(judged, encoder, experiment, rows)
    total_rows = count_rows(rows, experiment)
    steps = -(-total_rows // batch.rows)
    check_profile(run, steps)
    identity = run_identity(experiment, rows, steps, source)
    return PlannedRun(examples, source, rows, held_out, total_rows, steps, identity)


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


def reference_cache(examples, directory: epath.Path) -> epath.Path:
    """Beside the data, where other runs find them too; in the run's directory where the data has no such place."""
    beside = index_cache(examples)
    if beside is None or not first_decides(lambda: can_write(beside)):
        return directory / "reference"
    return beside


def run_score(figures: dict[str, Any], run: config.Run, step: int) -> float | None:
    """The number that best checkpoints are chosen by, higher is better. One that is not finite is none, which is said."""
    figure = figures[run.best]
    if not math.isfinite(figure):
        say(f"step {step}: {run.best} is {figure}, which is no score: this step cannot be the best one")
        return None
    return -figure if run.best_is == "lowest" else figure


def open_judged(experiment: config.Experiment):
    """The held-out examples, None where the experiment names none. UserError where nothing in them can be judged."""
    data, run = experiment.data, experiment.run
    if data.held_out is None:
        return None
    task = task_of(experiment.objective)
    examples = open_held_out_examples(data, task)
    task.check_examples(examples, data.held_out)
    if run.eval_every is None:
        say(f"{data.held_out} is judged once, behind the last step; run.eval_every judges it more often")
    return examples


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
        say(f"{first_line(error)}: {lost}; the same command continues from the newest checkpoint")
        sys.stdout.flush()
        os._exit(PEER_LOST)


def clear(directory: epath.Path) -> None:
    """Remove what an earlier run of this directory left: checkpoints, metrics and their page, bad batches; nothing else."""
    for name in (CHECKPOINTS, "tensorboard"):
        if exists(directory / name):
            say(f"--fresh: removing {directory / name}")
            retried(partial((directory / name).rmtree, missing_ok=True), f"{directory / name}")
    for path in [directory / "metrics.jsonl", directory / PAGE, *matching(directory, bad_batch_file("*"))]:
        retried(partial(path.unlink, missing_ok=True), f"{path}")
