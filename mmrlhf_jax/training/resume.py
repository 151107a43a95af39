"""The state that a run begins with: that of its newest checkpoint, or a fresh one."""

from __future__ import annotations

from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.progress import say
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.directory import CHECKPOINTS
from mmrlhf_jax.training.held_out import fingerprint
from mmrlhf_jax.training.planned import PlannedRun
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.stored import Criterion


def open_checkpoints(experiment: config.Experiment, plan: PlannedRun) -> Checkpoints:
    """The run's checkpoints; their criterion is `run.best` on the plan's held-out data."""
    run = experiment.run
    criterion = Criterion(run.best, run.best_is, None if plan.held_out is None else fingerprint(plan.held_out))
    return Checkpoints(epath.Path(run.directory) / CHECKPOINTS, keep=run.keep, criterion=criterion)


def resumed(state: TrainState, checkpoints: Checkpoints, experiment: config.Experiment, plan: PlannedRun) -> TrainState:
    """The state of the newest checkpoint, or `state` if there is none. Prints the step, and which checkpoints have scores by
    another criterion."""
    held_out, directory = experiment.data.held_out, epath.Path(experiment.run.directory)
    if checkpoints.latest is not None:
        state = checkpoints.restore(state, plan.identity)
        say(f"resumed from step {int(state.step)} of {plan.steps} in {directory}")
        if int(state.step) == plan.steps:
            judged = f"; {held_out} is not judged, because that happens only after a step" if held_out is not None else ""
            say(f"all {plan.steps} steps are done: nothing is left to train{judged}")
    if held_out is not None and checkpoints.other_scores is not None:
        here = f"{checkpoints.criterion.figure} on {held_out}"
        say(f"{checkpoints.other_scores}; they are not compared with those by {here}")
    return state
