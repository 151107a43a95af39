"""`mmrlhf train`: from an experiment to a finished run directory, with one loop for every objective."""

from __future__ import annotations

from etils import epath
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.cleanup import Cleanup
from mmrlhf_jax.exits import SIGNALLED, StoppedTogether
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import first_acts, together
from mmrlhf_jax.sharding.mesh import use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.base import split_base
from mmrlhf_jax.training.directory import CHECKPOINTS, clear, write_settings
from mmrlhf_jax.training.goodput import Goodput
from mmrlhf_jax.training.identity import known_identity
from mmrlhf_jax.training.owner import owned
from mmrlhf_jax.training.peers import LOADING, MEASURING, Peers, ends_if_alone, peers_of
from mmrlhf_jax.training.planned import agreed_plan, say_margins
from mmrlhf_jax.training.preflight import check_launch, check_metrics, check_room, check_stored
from mmrlhf_jax.training.reference import with_reference_logps
from mmrlhf_jax.training.resume import open_checkpoints, resumed
from mmrlhf_jax.training.run import Run
from mmrlhf_jax.training.state import TrainState, init_state
from mmrlhf_jax.training.stop import StopSignal, Vote


def train(experiment: config.Experiment, launch: config.Launch, *, fresh: bool = False) -> TrainState:
    """Run an experiment to its end, from its newest checkpoint if it has one (unless `fresh`).

    Raises UserError before the first step if configuration, model or data are wrong (as early as that can be known), and after
    a step that the guard stops at (a loss that is not finite, for example); the batch is then saved for replay.
    """
    experiment, mesh = check_launch(config.with_absolute_paths(experiment), launch)
    directory, goodput = epath.Path(experiment.run.directory), Goodput()
    if not fresh:
        check_stored(directory / CHECKPOINTS, known_identity(experiment))
        check_metrics(directory)
    with (
        # Signals and peers come first, because it may take a minute to find out whether an owner on another host is alive.
        StopSignal() as stop,
        peers_of(launch) as peers,
        ends_if_alone(peers),
        owned(directory) as still_owned,
        use_mesh(mesh),
        matmul_precision(experiment.model.dtype),
        Cleanup() as cleanup,
        ends_if_alone(peers),  # inside as well, because on an error of a collective the cleanup would wait for the lost process
    ):
        run = _prepare(experiment, mesh, goodput, peers, cleanup, fresh=fresh)
        stopping, vote = False, Vote(mesh)
        stop.steps_begin()
        goodput.started()
        for batch in run.batches():
            run.step(batch)
            stopping = vote.stops(stop.requested)
            still_owned()
            run.record_previous()
            score = run.judge()
            run.save(score, stopping=stopping)
            if stopping:
                break
        run.finish()
        if stopping and run.done < run.steps:
            say(f"stopped by a signal after step {run.done}; the same command continues from there")
            raise StoppedTogether(SIGNALLED)
    return run.state


def _prepare(
    experiment: config.Experiment, mesh: Mesh, goodput: Goodput, peers: Peers, cleanup: Cleanup, *, fresh: bool
) -> Run:
    """Everything before the first step: plan the data, load the model, compute reference log-probs, restore a checkpoint."""
    directory = epath.Path(experiment.run.directory)
    peers.at(0, MEASURING)  # needs only the model's tokenizer and sizes, not its weights
    plan = agreed_plan(experiment)
    experiment, task = plan.experiment, task_of(plan.experiment.objective)
    if not fresh:
        check_stored(directory / CHECKPOINTS, plan.identity)
    say(plan.summary)
    say_margins(plan.margins)

    peers.at(0, LOADING)
    base = split_base(experiment, mesh, plan.steps)
    together(lambda: check_room(directory, base.params, base.tx))
    if task.reference == "cached":
        at_batch = lambda done: peers.at(0, f"computing reference log-probs, batch {done}")
        plan = with_reference_logps(plan, base, experiment, mesh, at_batch)

    peers.at(0, "preparing the first step")
    keep_start = task.reference == "live"
    state = init_state(base.params, base.frozen, base.tx, mesh, keep_start=keep_start, statistics=task.statistics)
    if fresh:
        first_acts(lambda: clear(directory))
    checkpoints = open_checkpoints(experiment, plan)
    cleanup.add("the checkpoints", checkpoints.close)
    state = resumed(state, checkpoints, experiment, plan)
    first_acts(lambda: write_settings(experiment, plan.rows, plan.margins, directory))
    return Run(experiment, plan, base, state, checkpoints, mesh=mesh, goodput=goodput, peers=peers, cleanup=cleanup)
