"""The programs of a run, lowered for the devices of a launch file from abstract arguments: nothing is compiled or allocated."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.data.pipeline import demanded_budget
from mmrlhf_jax.data.rows import Budget, RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.model_config import read_config
from mmrlhf_jax.inference.scoring import make_scoring_step
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.registry import family_of, published_config
from mmrlhf_jax.planning.abstract import abstract_batch, abstract_model, abstract_state
from mmrlhf_jax.planning.program import held_bytes
from mmrlhf_jax.planning.topology import planned_devices
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.step import Step, make_eval_step, make_train_step

PLANNED_STEPS = 1000  # length of the learning rate schedule, which does not change what is planned
NOTHING = config.Trains(**dict.fromkeys(config.Trains.model_fields, False))


def launch_mesh(launch: config.Launch) -> Mesh:
    found = None if launch.accelerator is None else accelerator(launch.accelerator)
    per_slice = found.chips if found is not None and not found.is_tpu else None
    return make_mesh(launch.mesh.model_dump(), planned_devices(launch), per_slice=per_slice)


def model_sizes(experiment: config.Experiment) -> tuple[ModelConfig, str]:
    """(the model's sizes, their source): read from its directory, or the published sizes if there is no directory. UserError if
    there are neither."""
    path = experiment.model.path
    published = published_config(path)
    try:
        sizes, source = read_config(local_directory(path)), path
    except UserError:
        if published is None:
            raise
        sizes, source = published, f"published sizes of {path} (it is not at hand)"
    if experiment.model.reward_head is not None:
        sizes = dataclasses.replace(sizes, reward_head=experiment.model.reward_head)
    return sizes, source


def with_budget(experiment: config.Experiment, budget: Budget) -> config.Experiment:
    """The experiment with every size of its rows set explicitly, instead of derived from the data."""
    return experiment.model_copy(update={"batch": experiment.batch.model_copy(update=dataclasses.asdict(budget))})


def lower_step(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """(the lowered train step of `training.step`, its abstract arguments, their mesh). The experiment must set all row sizes
    and the accumulation."""
    sizes, _ = model_sizes(experiment)
    mesh = launch_mesh(launch)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        step, *arguments = step_arguments(experiment, sizes, mesh)
        return step.lower(*arguments), tuple(arguments), mesh


def step_arguments(experiment: config.Experiment, sizes: ModelConfig, mesh: Mesh) -> tuple[Step, TrainState, RowBatch]:
    """(train step, abstract state, abstract batch)."""
    task = task_of(experiment.objective).without_data
    tx = make_optimizer(experiment.optimizer, PLANNED_STEPS, family_of(sizes).parts, experiment.guard)
    model = abstract_model(sizes, experiment, mesh)
    graphdef, state = abstract_state(model, experiment, tx, mesh, keep_start=task.reference == "live")
    step = make_train_step(
        graphdef,
        task,
        tx,
        chunk=experiment.batch.logprob_chunk,
        accumulation=experiment.batch.accumulation,
        seed=experiment.run.seed,
        reference=task.reference,
        features=sizes.geometry.features,
        shardings=jax.tree.map(lambda x: x.sharding, state),
    )
    return step, state, abstract_batch(experiment.batch.rows, demanded_budget(experiment.batch), sizes.geometry, mesh)


def run_passes(experiment: config.Experiment) -> list[str]:
    """The names in `PASSES` of the forward passes that a run of the experiment computes beside its steps."""
    found = [] if experiment.data.held_out is None else ["evaluation"]
    return [*found, "reference"] if task_of(experiment.objective).reference == "cached" else found


def lower_evaluation(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """Like `lower_step`, for the evaluation of one batch of held-out rows."""
    sizes, _ = model_sizes(experiment)
    mesh = launch_mesh(launch)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        graphdef, state, batch = _pass_arguments(experiment, sizes, mesh)
        task = task_of(experiment.objective).without_data
        step = make_eval_step(graphdef, task, chunk=experiment.batch.logprob_chunk, reference=task.reference)
        return step.lower(state, batch), (state.params, state.frozen, batch), mesh


def lower_reference(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """Like `lower_step`, for the reference log-probs of one batch."""
    sizes, _ = model_sizes(experiment)
    mesh = launch_mesh(launch)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        graphdef, state, batch = _pass_arguments(experiment, sizes, mesh)
        arguments = state.params, state.frozen, batch
        return make_scoring_step(graphdef, chunk=experiment.batch.logprob_chunk).lower(*arguments), arguments, mesh


PASSES = {"evaluation": lower_evaluation, "reference": lower_reference}


def resident_bytes(experiment: config.Experiment, sizes: ModelConfig, mesh: Mesh) -> dict[str, int]:
    """Bytes per device, by pass, of allocated arrays that are not arguments of its program: for the evaluation the optimizer's
    state; none for the reference pass, which runs before that state exists."""
    _, state, _ = _pass_arguments(experiment, sizes, mesh)
    start = () if task_of(experiment.objective).reference == "live" else state.start  # a live reference has it as argument
    return {"evaluation": held_bytes((state.opt_state, start)), "reference": 0}


def _pass_arguments(experiment: config.Experiment, sizes: ModelConfig, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState, RowBatch]:
    """(graphdef, abstract state, abstract batch) of a forward pass over the rows of one accumulation piece."""
    batch = experiment.batch
    tx = make_optimizer(experiment.optimizer, PLANNED_STEPS, family_of(sizes).parts, experiment.guard)
    keep_start = task_of(experiment.objective).reference == "live"
    graphdef, state = abstract_state(abstract_model(sizes, experiment, mesh), experiment, tx, mesh, keep_start=keep_start)
    return graphdef, state, abstract_batch(batch.rows // batch.accumulation, demanded_budget(batch), sizes.geometry, mesh)
