"""Log-probabilities of target tokens without `[B, S, V]` logits: only answers reach the vocabulary, chunk by chunk."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrlhf_jax.sharding.rules import constrain


class TargetLogps(NamedTuple):
    """Per target: log-probability, whether it is the most likely token, and the mean logit over the vocabulary."""

    logps: Float[Array, "B M"]
    correct: Float[Array, "B M"]
    mean_logits: Float[Array, "B M"]


def target_logps(
    hidden: Float[Array, "B S E"],
    vocabulary: Float[Array, "E V"],
    targets: Int[Array, "B M"],
    predictors: Int[Array, "B M"],
    *,
    chunk: int = 256,
) -> TargetLogps:
    """Log-probability of every target given the hidden state at its predictor slot.

    The projection runs over `chunk` targets per row at a time and is recomputed in the backward pass, so at most one
    `[B, chunk, V]` float32 array is live. Softmax in float32.
    """
    batch, count = targets.shape
    chunk = min(chunk, count)
    padding = -count % chunk
    predictors = jnp.pad(predictors, ((0, 0), (0, padding))).reshape(batch, -1, chunk).swapaxes(0, 1)
    padded = jnp.pad(targets, ((0, 0), (0, padding))).reshape(batch, -1, chunk).swapaxes(0, 1)

    @partial(jax.checkpoint, prevent_cse=False)
    def body(predictors, targets):
        states = jnp.take_along_axis(hidden, predictors[..., None], axis=1)
        logits = jnp.einsum("bce,ev->bcv", states, vocabulary, preferred_element_type=jnp.float32)
        logits = constrain(logits, "batch", None, "act_vocab")
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        logps = chosen - jax.nn.logsumexp(logits, axis=-1)
        correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
        return TargetLogps(logps, correct, logits.mean(axis=-1))

    # The count of chunks is static; a scan keeps one chunk alive at a time.
    _, out = jax.lax.scan(lambda _, xs: (None, body(*xs)), None, (predictors, padded))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(batch, -1)[:, :count], out)


def sum_by_response(values: Float[Array, "B M"], responses: Int[Array, "B M"], count: int) -> Float[Array, "B R"]:
    """Sums of per-target values per response, R = `count`. Targets of response R are unused and dropped."""
    return jax.vmap(lambda v, r: jnp.zeros(count, v.dtype).at[r].add(v, mode="drop"))(values, responses)
