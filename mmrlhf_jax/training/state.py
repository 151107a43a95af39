"""The train state: a plain pytree. The module graph is static and travels beside it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrlhf_jax.config import Trains
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision

# Part of the model -> key of `Trains`.
PARTS = {
    "vision": "vision_tower",
    "projector": "projector",
    "newline": "newline",
    "language": "language_model",
    "reward_head": "reward_head",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """`params` get gradients, `frozen` do not; both are `nnx.State`s of the same model."""

    step: jax.Array  # int32[]: steps done, which is also the data position
    params: nnx.State
    frozen: nnx.State
    opt_state: optax.OptState


def split_model(model: LlavaOnevision, trains: Trains) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """(graphdef, trained parameters, frozen parameters)."""
    return nnx.split(model, lambda path, _: getattr(trains, PARTS[path[0]]), ...)


def init_state(params: nnx.State, frozen: nnx.State, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A fresh state at step 0. The optimizer's moments lie where the parameters they belong to lie."""
    replicated = NamedSharding(mesh, PartitionSpec())
    abstract = jax.eval_shape(tx.init, params)
    places = optax.tree_map_params(tx, lambda _, p: p.sharding, abstract, params, transform_non_params=lambda _: replicated)
    opt_state = jax.jit(tx.init, out_shardings=places)(params)
    return TrainState(jax.device_put(jnp.zeros((), jnp.int32), replicated), params, frozen, opt_state)
