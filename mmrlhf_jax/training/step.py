"""The train step: a free function over pytrees. `(state, batch) -> (state, metrics)`, jitted with the state donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.objectives.weighted import divide, merge, mix, summary
from mmrlhf_jax.training.objective import Objective, Outputs, forward
from mmrlhf_jax.training.state import TrainState

Step = Callable[[TrainState, RowBatch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    chunk: int,
    accumulation: int = 1,
    seed: int = 0,
    shardings: TrainState | None = None,
) -> Step:
    """One optimizer step on a global batch, its rows taken in `accumulation` pieces.

    Losses and metrics are means over the whole batch whatever the number of pieces: every piece is divided by the
    denominators of the whole batch, which depend on the batch alone.

    `shardings` (of the state's leaves) are where the new state is put: given those of the state that comes in, the second step
    meets what the first one met, and one compilation serves the run.
    """

    def train_step(state: TrainState, batch: RowBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        pieces = split_rows(batch, accumulation)
        denominators = batch_denominators(objective, pieces, key)

        def loss(params: nnx.State, piece: RowBatch):
            model = nnx.merge(graphdef, params, state.frozen)
            sums, metrics = objective.terms(forward(model, piece, chunk=chunk), piece, key)
            return mix(sums, objective.coefficients, denominators), metrics

        value_and_grad = jax.value_and_grad(loss, has_aux=True)

        if accumulation == 1:
            (value, metrics), grads = value_and_grad(state.params, jax.tree.map(lambda x: x[0], pieces))
        else:

            def accumulate(total, piece):
                (value, metrics), grads = value_and_grad(state.params, piece)
                return jax.tree.map(jnp.add, total, (value, grads)), metrics

            zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
            (value, grads), stacked = jax.lax.scan(accumulate, zeros, pieces)
            metrics = reduce(merge, [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(accumulation)])

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        figures = summary(metrics) | {"loss": value, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, state.frozen, opt_state), figures

    return jax.jit(train_step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def make_eval_step(graphdef: nnx.GraphDef, objective: Objective, *, chunk: int):
    """`(params, frozen, batch) -> (sums, metrics)`: unreduced, so that a whole set is averaged exactly."""

    def eval_step(params: nnx.State, frozen: nnx.State, batch: RowBatch):
        outputs = forward(nnx.merge(graphdef, params, frozen), batch, chunk=chunk)
        return objective.terms(outputs, batch, jax.random.key(0))

    return jax.jit(eval_step)


def split_rows(batch: RowBatch, pieces: int) -> RowBatch:
    """[B, ...] to [pieces, B / pieces, ...]. A piece takes every pieces-th row, so that each spans all batch shards."""
    return jax.tree.map(lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch)


def batch_denominators(objective: Objective, pieces: RowBatch, key: jax.Array) -> dict[str, jax.Array]:
    """The weight of each term over all pieces. Weights do not depend on the model, so empty outputs give them."""

    def weights(piece: RowBatch):
        zeros = jnp.zeros(piece.ends.shape, jnp.float32)
        sums, _ = objective.terms(Outputs(zeros, zeros, zeros, zeros), piece, key)
        return {name: s.weight for name, s in sums.items()}

    return jax.tree.map(lambda w: w.sum(axis=0), jax.vmap(weights)(pieces))


def mean_loss(objective: Objective, sums) -> jax.Array:
    """The loss of a whole evaluation set from its merged sums."""
    return sum(
        (coefficient * divide(sums[name].total, sums[name].weight) for name, coefficient in objective.coefficients.items()),
        start=jnp.float32(0),
    )
