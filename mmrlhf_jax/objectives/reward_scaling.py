"""β(δ): the β of each pair as a function of its reward margin. Each function returns float32[*pairs].

`margin` is Dynamic Reward Scaling as the MM-RLHF paper defines it. `ls_factor` and `batch_implicit` are the rules of the
released code (its `trl/trainer/dpo_trainer.py`): `ls_factor` uses a number stored with the pair; `batch_implicit`, which
overrides it there by default, uses the implicit margins of the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from mmrlhf_jax.objectives.pairs import PerPair

# Lower bound of the released code. With β ≤ 0 the loss would prefer the rejected response.
MIN_BETA = 1e-3
# Keeps exp finite in float32; at this exponent `margin` has long reached MIN_BETA.
_MAX_EXPONENT = 80.0


def fixed(margins: PerPair, beta: float) -> PerPair:
    """The same β for every pair: plain DPO."""
    return jnp.full_like(margins, beta)


def margin(margins: PerPair, beta: float, w: float, k: float, *, clamp_negative: bool = True) -> PerPair:
    """β·(1 + w·(1 − exp(−k·max(δ, 0)))), with δ = r⁺ − r⁻ from a reward model (MM-RLHF paper, arXiv 2502.10391).

    The paper's range [β, (1 + w)·β] implies the clamp of δ at 0. With `clamp_negative=False` a pair that the reward model
    orders against the human ranking gets less than β, down to MIN_BETA.
    """
    if clamp_negative:
        return beta * (1 - w * jnp.expm1(-k * jnp.maximum(margins, 0)))
    exponent = jnp.minimum(-k * margins, _MAX_EXPONENT)
    return jnp.maximum(beta * (1 - w * jnp.expm1(exponent)), jnp.minimum(MIN_BETA, beta))


def ls_factor(factors: PerPair, beta: float, w: float) -> PerPair:
    """β·(1 + w·f), at least MIN_BETA; `factors` f are the released data's `ls_factor` of each pair, a transformed margin."""
    return jnp.maximum(beta * (1 + w * factors), MIN_BETA)


def batch_implicit(
    key: PRNGKeyArray,
    implicit_margins: PerPair,
    pair_weights: PerPair,
    beta: float,
    w: float,
) -> PerPair:
    """One β for the batch: β·(1 + w·(mean of a sample of the margins − mean of all)), at least MIN_BETA.

    `implicit_margins` are s⁺ − s⁻ without β, treated as constants. The sample is 80 % of the N used pairs, drawn without
    replacement with Gaussian weights exp(−½((δ − mean)/std)²), so that outliers are rarely drawn. The released code draws on
    every rank separately; here the draw depends only on `key` and the batch (slots included) and is the same on every host.
    With N < 2, where the released code gives NaN, β is unchanged.
    """
    margins = jnp.ravel(jax.lax.stop_gradient(implicit_margins))
    used = jnp.ravel(pair_weights) != 0
    count = jnp.sum(used)
    mean = jnp.sum(margins, where=used) / jnp.maximum(count, 1)
    variance = jnp.sum((margins - mean) ** 2, where=used) / jnp.maximum(count - 1, 1)
    scores = (margins - mean) / (jnp.sqrt(variance) + 1e-7)
    probabilities = jnp.where(used, jnp.exp(-0.5 * scores**2), 0)
    # Draw all of them in random order: the first n are a draw of n, and n is known only on the device.
    order = jax.random.choice(key, margins.size, margins.shape, replace=False, p=probabilities)
    drawn = count * 4 // 5
    sample_mean = jnp.sum(margins[order], where=jnp.arange(margins.size) < drawn) / jnp.maximum(drawn, 1)
    scaled = jnp.maximum(beta * (1 + w * (sample_mean - mean)), MIN_BETA)
    return jnp.full(implicit_margins.shape, jnp.where(count < 2, beta, scaled), margins.dtype)
