"""β(δ): the β of each pair as a function of its reward margin. Each function returns float32[*pairs].

`margin` is Dynamic Reward Scaling as the MM-RLHF paper defines it. `ls_factor` and `batch_implicit` are the rules of the
released code (its `trl/trainer/dpo_trainer.py`): `ls_factor` uses a number stored with the pair; `batch_implicit`, which
overrides it there by default, uses the implicit margins of the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mmrlhf_jax.dynamic_scaling import MAX_EXPONENT, MIN_BETA
from mmrlhf_jax.objectives.beta_dpo import batch_beta, moments
from mmrlhf_jax.objectives.pair_draws import drawn_pairs
from mmrlhf_jax.objectives.pairs import PerPair


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
    exponent = jnp.minimum(-k * margins, MAX_EXPONENT)
    return jnp.maximum(beta * (1 - w * jnp.expm1(exponent)), jnp.minimum(MIN_BETA, beta))


def ls_factor(factors: PerPair, beta: float, w: float) -> PerPair:
    """β·(1 + w·f), at least MIN_BETA; `factors` f are the released data's `ls_factor` of each pair, a transformed margin."""
    return jnp.maximum(beta * (1 + w * factors), MIN_BETA)


def batch_implicit(
    noise: PerPair,
    implicit_margins: PerPair,
    pair_weights: PerPair,
    beta: float,
    w: float,
) -> PerPair:
    """One β for the batch: β·(1 + w·(mean of a sample of the margins − mean of all)), at least MIN_BETA.

    `implicit_margins` are s⁺ − s⁻ without β, treated as constants. The sample is 80 % of the N used pairs, drawn without
    replacement with Gaussian weights exp(−½((δ − mean)/std)²), so that outliers are rarely drawn; `noise` is that of
    `pair_draws.pair_noise`. So it is β-DPO's β by the mean and standard deviation of this batch alone. The released code draws
    on every rank separately; here the draw is one for all hosts. With N < 2, where the released code gives NaN, β is unchanged.
    """
    margins, used = jax.lax.stop_gradient(implicit_margins), pair_weights != 0
    mean, std = moments(margins, pair_weights)
    counts = np.asarray([n * 4 // 5 for n in range(used.size + 1)], np.int32)
    drawn = drawn_pairs(noise, -0.5 * ((margins - mean) / (std + 1e-7)) ** 2, used, counts)
    return batch_beta(margins, pair_weights, drawn, mean, beta, w)
