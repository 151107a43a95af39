"""Abstract arguments of a train step: shapes, dtypes and shardings, for compiling without allocating any array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import Budget, RowBatch, empty_row
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.lora import with_reduce_dtype
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.sharding.mesh import batch_sharding, parameter_shardings, replicated, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.state import TrainState, moment_places, split_model, stored_dtype, with_adapters


def abstract_model(sizes: ModelConfig, experiment: config.Experiment, mesh: Mesh) -> VisionLanguage:
    """The experiment's model, adapters included, with every parameter a `ShapeDtypeStruct` with its sharding."""
    settings = experiment.model
    kinds = dict(dtype=jnp.dtype(settings.dtype), remat=settings.remat, attention=settings.attention)
    dtype_of = stored_dtype(family_of(sizes).parts, settings, experiment.trains, experiment.lora)
    with use_mesh(mesh):
        made = nnx.eval_shape(lambda: family_of(sizes).model()(sizes, rngs=nnx.Rngs(0), **kinds))
        adapted = with_adapters(made, experiment.lora, experiment.run.seed)
        graphdef, state = nnx.split(with_reduce_dtype(adapted, settings.reduce_dtype))
        places = parameter_shardings(state, mesh)
    leaves = [
        (path, param.replace(jax.ShapeDtypeStruct(param.shape, dtype_of(path), sharding=places[path])))
        for path, param in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def abstract_state(
    model: VisionLanguage, experiment: config.Experiment, tx, mesh: Mesh, *, keep_start: bool
) -> tuple[nnx.GraphDef, TrainState]:
    """(graphdef, abstract state) with the shapes and shardings of `training.state.init_state`."""
    graphdef, params, frozen = split_model(model, experiment.trains, experiment.lora)
    with use_mesh(mesh):
        opt_state = jax.eval_shape(tx.init, params)
    places = moment_places(opt_state, params, replicated(mesh))
    opt_state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), opt_state, places)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    statistics = dict.fromkeys(task_of(experiment.objective).statistics, number)
    return graphdef, TrainState(step, params, frozen, opt_state, params if keep_start else None, statistics)


def abstract_batch(rows: int, budget: Budget, geometry, mesh: Mesh) -> RowBatch:
    """An abstract global batch of `rows` rows, sharded over the batch axes."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=batch_sharding(mesh, x.ndim + 1)),
        empty_row(budget, geometry),
    )
