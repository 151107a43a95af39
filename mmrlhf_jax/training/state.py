"""The train state: a plain pytree. The module graph is static and travels beside it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import nnx

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


def init_state(params: nnx.State, frozen: nnx.State, tx: optax.GradientTransformation) -> TrainState:
    """A fresh state at step 0. The optimizer's moments are sharded like the parameters they belong to."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, frozen=frozen, opt_state=jax.jit(tx.init)(params))
