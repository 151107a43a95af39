"""The train step, a function over pytrees: `(state, batch) -> (state, metrics)`, jitted, with the state donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.inference.forward import forward as default_forward
from mmrlhf_jax.objectives import Metric, Outputs, divide, merge, mix, summary
from mmrlhf_jax.tasks import Reference, Statistics, Task
from mmrlhf_jax.training.guard import GOOD
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.work import batch_work

LANGUAGE = {"language", "reward_head"}  # attributes of a model that media do not go through before they are visual tokens
Step = Callable[[TrainState, RowBatch], tuple[TrainState, dict[str, jax.Array]]]
Forward = Callable[..., Outputs]  # called as forward(model, batch, chunk=...)


def make_train_step(
    graphdef: nnx.GraphDef,
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    *,
    chunk: int,
    accumulation: int = 1,
    seed: int = 0,
    reference: Reference = None,
    features: int = 0,
    shardings: TrainState | None = None,
    forward: Forward = forward,
) -> Step:
    """A jitted optimizer step on a global batch, with gradients accumulated over `accumulation` pieces of its rows.

    The result does not depend on the number of pieces: losses and metrics are means over the whole batch, because every piece
    is divided by the denominators of the whole batch, which depend on the batch alone.

    A step that the guard finds bad leaves the running statistics alone, as it does parameters and optimizer state; the figures
    have those of the new state.

    `features` is how many features the model makes of a tile; it counts the batch's work (figures `work/*`), and 0 omits them.

    `shardings` are the output shardings of the state. Fixed to those of the first state, they avoid a second compilation at
    step 2. Figures are replicated over the devices.

    `forward` is replaced only for a batch layout that has its own forward pass (`planning.unshared`).
    """

    def train_step(state: TrainState, batch: RowBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        value, metrics, grads, statistics = loss_and_gradients(
            graphdef,
            task,
            state,
            batch,
            chunk=chunk,
            accumulation=accumulation,
            seed=seed,
            reference=reference,
            forward=forward,
        )
        if shardings is not None:  # reshard gradients that the backward pass replicated to the shards of the parameters
            grads = jax.tree.map(jax.lax.with_sharding_constraint, grads, shardings.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
        figures = summary(metrics) | {"loss": value, "grad_norm": optax.tree.norm(grads)}
        if features:
            figures |= {
                f"work/{name}": count for name, count in batch_work(batch, features)._asdict().items() if count is not None
            }
        figures |= {"skipped_steps": opt_state.skipped, "guard": opt_state.status}
        good = opt_state.status == GOOD
        statistics = {name: jnp.where(good, statistics[name], old) for name, old in state.statistics.items()}
        figures |= statistics
        return TrainState(state.step + 1, params, state.frozen, opt_state, state.start, statistics), figures

    return jax.jit(train_step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, shardings.step))


def loss_and_gradients(
    graphdef: nnx.GraphDef,
    task: Task,
    state: TrainState,
    batch: RowBatch,
    *,
    chunk: int,
    accumulation: int,
    seed: int,
    reference: Reference,
    forward: Forward = forward,
) -> tuple[jax.Array, dict[str, Metric], nnx.State, Statistics]:
    """(loss float32[], metrics, gradients like `state.params`, updated running statistics) of a global batch, accumulated over
    `accumulation` pieces. ValueError if there are pieces and statistics, which are of whole batches."""
    if accumulation > 1 and state.statistics:
        raise ValueError(f"{', '.join(state.statistics)} are of the whole batch, of which accumulation shows a piece at a time")
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    pieces = split_rows(batch, accumulation)
    denominators = batch_denominators(task, pieces, key, state.statistics)

    def loss(params: nnx.State, piece: RowBatch, outputs_of_reference: Outputs | None):
        outputs = forward(nnx.merge(graphdef, params, state.frozen), piece, chunk=chunk)
        found = jax.lax.stop_gradient(outputs)
        statistics = task.updated_statistics(state.statistics, found, piece, outputs_of_reference)
        sums, metrics = task.terms(outputs, piece, key, outputs_of_reference, statistics)
        return mix(sums, task.coefficients, denominators), (metrics, statistics)

    def value_and_grad(piece: RowBatch):
        if forward is default_forward:
            piece = with_shared_features(graphdef, state, piece, reference)
        outputs_of_reference = reference_outputs(graphdef, state, piece, reference, chunk=chunk, forward=forward)
        return jax.value_and_grad(loss, has_aux=True)(state.params, piece, outputs_of_reference)

    if accumulation == 1:
        (value, (metrics, statistics)), grads = value_and_grad(jax.tree.map(lambda x: x[0], pieces))
        return value, metrics, grads, statistics

    def accumulate(total, piece):
        (value, (metrics, _)), grads = value_and_grad(piece)
        return jax.tree.map(jnp.add, total, (value, grads)), metrics

    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    (value, grads), stacked = jax.lax.scan(accumulate, zeros, pieces)
    return value, reduce(merge, [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(accumulation)]), grads, {}


def make_eval_step(graphdef: nnx.GraphDef, task: Task, *, chunk: int, reference: Reference = None):
    """A jitted `(state, batch) -> (sums, metrics)`. Both keep totals and weights apart, so that the mean over a whole data set
    is exact. Running statistics are those of the state, and the batch does not change them. All pairs are judged, also where
    training leaves some out (`Task.judging`)."""
    task = task.judging

    def eval_step(state: TrainState, batch: RowBatch):
        batch = with_shared_features(graphdef, state, batch, reference)
        outputs = forward(nnx.merge(graphdef, state.params, state.frozen), batch, chunk=chunk)
        outputs_of_reference = reference_outputs(graphdef, state, batch, reference, chunk=chunk)
        return task.terms(outputs, batch, jax.random.key(0), outputs_of_reference, state.statistics)

    return jax.jit(eval_step)


def with_shared_features(graphdef: nnx.GraphDef, state: TrainState, batch: RowBatch, reference: Reference) -> RowBatch:
    """The batch with the features of its media where policy and reference make the same: if the reference is computed beside
    the policy, and nothing but the language model and the head learns. Else the batch as it is."""
    if reference in (None, "cached") or {*state.params} - LANGUAGE:
        return batch
    model = nnx.merge(graphdef, state.params, state.frozen)
    return batch._replace(media=jax.lax.stop_gradient(model.encoded(batch.media)))


def reference_outputs(
    graphdef: nnx.GraphDef, state: TrainState, batch: RowBatch, reference: Reference, *, chunk: int, forward: Forward = forward
) -> Outputs | None:
    """The outputs of the model at step 0 for a batch; None if the objective has no reference or its log-probs are cached in the
    batch."""
    if reference in (None, "cached"):
        return None
    if reference == "live":
        params = state.start
    else:  # with B = 0 the adapters add nothing, which gives the base model
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: jnp.zeros_like(p) if "lora_b" in jax.tree_util.keystr(path) else p, state.params
        )
    return jax.lax.stop_gradient(forward(nnx.merge(graphdef, params, state.frozen), batch, chunk=chunk))


def split_rows(batch: RowBatch, pieces: int) -> RowBatch:
    """[B, ...] to [pieces, B / pieces, ...]. A piece has every pieces-th row, so that its rows are spread over all batch
    shards."""
    return jax.tree.map(lambda x: x.reshape(len(x) // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), batch)


def batch_denominators(task: Task, pieces: RowBatch, key: jax.Array, statistics: Statistics) -> dict[str, jax.Array]:
    """The total weight of each term over all pieces. Weights do not depend on the model's outputs, so zeros stand in for
    them."""

    def weights(piece: RowBatch):
        zeros, tokens = (jnp.zeros(shaped.shape, jnp.float32) for shaped in (piece.ends, piece.targets))
        empty = Outputs(zeros, zeros, zeros, zeros, zeros, tokens)
        sums, _ = task.terms(empty, piece, key, empty, statistics)
        return {name: s.weight for name, s in sums.items()}

    return jax.tree.map(lambda w: w.sum(axis=0), jax.vmap(weights)(pieces))


def mean_loss(task: Task, sums) -> jax.Array:
    """The loss, float32[], of a whole evaluation set from its merged sums."""
    return sum(
        (coefficient * divide(sums[name].total, sums[name].weight) for name, coefficient in task.coefficients.items()),
        start=jnp.float32(0),
    )
