"""β-DPO (arXiv 2407.08639): one β for a batch, from its implicit margins against their running mean; unlikely pairs left out.

M = s⁺ − s⁻ is a pair's implicit margin: without β, and a constant to the gradient. Of a batch's N used pairs (weight not 0)

    M0 ← m·M0 + (1 − m)·mean(M)      σ ← m·σ + (1 − m)·std(M)      both from 0, std with N − 1
    β_batch = max(β·(1 + α·(A − M0)), MIN_BETA)

in which M0 and σ are those after this batch, and A is the mean M of the pairs that have a loss: all, or int((1 − f)·N) of
them, drawn without replacement with weights exp(−½((M − M0)/σ)²).

The authors' code is `preference_loss` and `update_and_sync_tensor_mean` in github.com/junkangwu/beta-DPO, `trainers.py`.
There batches of the evaluation change M0 and σ as well, and every rank divides its losses by its own number of drawn pairs;
here only training batches change them and leave pairs out, and the mean is over the drawn pairs of all hosts. Fewer than two
used pairs, of which that code makes NaN, change neither M0 nor σ, have the unscaled β, and none of them is left out. Before
the first update of the policy every M is 0, or what rounding makes of it, and σ = 0, with which that code fails; in the draw
σ is at least MIN_STD here, which makes pairs of equal margins equally likely. Where rounding errors of the margins are not
far below MIN_STD, as in bfloat16 models, the first draws are by these errors, and other ones on another mesh
(`docs/exactness.md`).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mmrlhf_jax.dynamic_scaling import MIN_BETA
from mmrlhf_jax.objectives import pair_draws
from mmrlhf_jax.objectives.pairs import PerPair
from mmrlhf_jax.objectives.weighted import divide

# In nats: margins that differ by much less are taken as equal. Rounding errors of float32 models are smaller, those of bfloat16
# models are not.
MIN_STD = 1e-3
Number = Float[Array, ""]


def moments(implicit_margins: PerPair, pair_weights: PerPair) -> tuple[Number, Number]:
    """(mean, unbiased standard deviation) of the used pairs' margins; 0 for what too few pairs leave undefined."""
    used = pair_weights != 0
    count = jnp.sum(used)
    mean = jnp.sum(implicit_margins, where=used) / jnp.maximum(count, 1)
    variance = jnp.sum((implicit_margins - mean) ** 2, where=used) / jnp.maximum(count - 1, 1)
    return mean, jnp.sqrt(variance)


def running_statistics(
    mean: Number, std: Number, implicit_margins: PerPair, pair_weights: PerPair, momentum: float
) -> tuple[Number, Number]:
    """(M0, σ) after a batch, from those before it."""
    of_batch = moments(implicit_margins, pair_weights)
    moved = [momentum * old + (1 - momentum) * new for old, new in zip((mean, std), of_batch, strict=True)]
    few = jnp.sum(pair_weights != 0) < 2
    return jnp.where(few, mean, moved[0]), jnp.where(few, std, moved[1])


def drawn_pairs(
    noise: PerPair, implicit_margins: PerPair, pair_weights: PerPair, mean: Number, std: Number, filtered: float
) -> Bool[Array, "*pairs"]:
    """The pairs that have a loss, at least one; with `filtered` f = 0 all used ones, which needs no `noise`
    (`pair_draws.pair_noise`). Pairs whose margin is NaN are drawn first, so that the loss shows them.
    """
    used = pair_weights != 0
    if filtered == 0:
        return used
    scores = (implicit_margins - mean) / jnp.maximum(std, MIN_STD)
    # Like the authors' code, in float64.
    counts = np.asarray([max(int(n * (1 - filtered)), 1) if n > 1 else n for n in range(used.size + 1)], np.int32)
    return pair_draws.drawn_pairs(noise, -0.5 * scores**2, used, counts)


def drawn_weights(pair_weights: PerPair, drawn: Bool[Array, "*pairs"]) -> PerPair:
    """The weights of the drawn pairs, scaled so that their total is that of all pairs, which depends on the batch alone."""
    kept = jnp.where(drawn, pair_weights, 0)
    return kept * divide(jnp.sum(pair_weights), jnp.sum(kept))


def batch_beta(
    implicit_margins: PerPair, pair_weights: PerPair, drawn: Bool[Array, "*pairs"], mean: Number, beta: float, alpha: float
) -> PerPair:
    """β_batch, the same for every pair, from the running `mean` M0 and the `drawn` pairs."""
    drawn_mean = jnp.sum(implicit_margins, where=drawn) / jnp.maximum(jnp.sum(drawn), 1)
    scaled = jnp.maximum(beta * (1 + alpha * (drawn_mean - mean)), MIN_BETA)
    few = jnp.sum(pair_weights != 0) < 2
    return jnp.full(pair_weights.shape, jnp.where(few, beta, scaled), implicit_margins.dtype)
