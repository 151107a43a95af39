"""A train state of random values, made on the device leaf by leaf, so that making it needs little more memory than it has."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.planning.abstract import abstract_model, abstract_state
from mmrlhf_jax.planning.bench import Layout
from mmrlhf_jax.planning.lowering import PLANNED_STEPS
from mmrlhf_jax.sharding.mesh import use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import TrainState, init_state
from mmrlhf_jax.training.step import Step, make_train_step
from tests.benchmarks.gpu.cases import Case

SCALE = 0.02  # of random weights, as language models are initialised


def make_step(case: Case, layout: Layout, mesh: Mesh) -> tuple[Step, TrainState, Callable[[], TrainState]]:
    """(the train step that `mmrlhf plan` compiles, its abstract state, a function that makes such a state)."""
    experiment, task = case.experiment, task_of(case.experiment.objective)
    tx = make_optimizer(experiment.optimizer, PLANNED_STEPS, family_of(case.sizes).parts, experiment.guard)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        model = abstract_model(case.sizes, experiment, mesh)
        graphdef, abstract = abstract_state(model, experiment, tx, mesh, keep_start=task.reference == "live")
        step = make_train_step(
            graphdef,
            task,
            tx,
            chunk=experiment.batch.logprob_chunk,
            accumulation=layout.pieces,
            seed=experiment.run.seed,
            reference=task.reference,
            features=case.sizes.geometry.features if layout.name == "group" else 0,
            shardings=jax.tree.map(lambda x: x.sharding, abstract),
            forward=layout.forward,
        )

    def make() -> TrainState:
        with use_mesh(mesh):
            return init_state(filled(abstract.params, 0), filled(abstract.frozen, 1), tx, mesh)

    return step, abstract, make


def filled(abstract: nnx.State, seed: int) -> nnx.State:
    """Random values in the place of abstract arrays: scales of norms near 1, all else near 0. The same for the same seed."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    made = []
    for number, (path, x) in enumerate(leaves):
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), number)
        middle = 1.0 if "'scale'" in jax.tree_util.keystr(path) else 0.0
        made.append(_random(x.shape, x.dtype, x.sharding)(key, middle))
    return jax.tree_util.tree_unflatten(structure, made)


@functools.cache
def _random(shape: tuple[int, ...], dtype, sharding):
    draw = lambda key, middle: (middle + SCALE * jax.random.normal(key, shape, jnp.bfloat16)).astype(dtype)
    return jax.jit(draw, out_shardings=sharding)
