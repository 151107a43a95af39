"""The critique reward model's objective (MM-RLHF paper §critique-based reward model; `trl/trainer/reward_trainer.py`).

The loss of critiques is the mean cross-entropy of their tokens, that of scores is Bradley–Terry over pairs. Ties and centring
are additions of the released code. All are `WeightedSum`s, to be combined by `weighted.mix`: the paper has the coefficients
{"score": 1, "critique": 1}; the released script adds {"centring": .01}.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives.pairs import PerPair, gather_pairs
from mmrlhf_jax.objectives.weighted import Metric, WeightedSum, divide, maximum, minimum, weighted_sum

CRITIQUE_WEIGHTINGS = ("pair", "response")


def score_sum(
    chosen: PerPair,
    rejected: PerPair,
    weights: PerPair,
    margins: PerPair | float = 0.0,
) -> WeightedSum:
    """Bradley–Terry: −log σ(r⁺ − r⁻ − margin) over strictly ordered pairs (paper Eq. 1 and 3; margin as in TRL)."""
    return weighted_sum(-jax.nn.log_sigmoid(chosen - rejected - margins), weights)


def tie_sum(first: PerPair, second: PerPair, weights: PerPair) -> WeightedSum:
    """(r₁ − r₂)² over pairs of equal rank (released code)."""
    return weighted_sum((first - second) ** 2, weights)


def centring_sum(first: PerPair, second: PerPair, weights: PerPair) -> WeightedSum:
    """(r₁ + r₂)² over pairs, which fixes the additive constant that Bradley–Terry leaves free (TRL
    `center_rewards_coefficient`)."""
    return weighted_sum((first + second) ** 2, weights)


def critique_sum(
    critique_logps: Float[Array, "B R"],
    critique_lengths: Float[Array, "B R"],
    pairs: Int[Array, "B P 2"],
    pair_weights: Float[Array, "B P"],
    weighting: str,
) -> WeightedSum:
    """Mean cross-entropy per critique token, from log-probs summed per response and their token counts.

    With `weighting` "pair" it is the released code's mean over pairs of CE⁺ + CE⁻: a response counts in each of its pairs, and
    a side without a critique adds 0. With "response" it is the mean over the batch's critiques, each counted once; for a single
    pair that is half as large. Raises UserError for another weighting.
    """
    losses = divide(-critique_logps, critique_lengths)
    if weighting == "response":
        return weighted_sum(losses, (critique_lengths > 0).astype(jnp.float32))
    if weighting == "pair":
        chosen, rejected = gather_pairs(losses, pairs, pair_weights)
        return weighted_sum(chosen + rejected, pair_weights)
    raise UserError(f"unknown critique weighting {weighting!r}; choose from {', '.join(CRITIQUE_WEIGHTINGS)}")


def reward_losses(
    rewards: Float[Array, "B R"],
    pairs: Int[Array, "B P 2"],
    pair_weights: Float[Array, "B P"],
    critique_logps: Float[Array, "B R"],
    critique_lengths: Float[Array, "B R"],
    critique_weighting: str,
    *,
    tie_pairs: Int[Array, "B Q 2"] | None = None,
    tie_weights: Float[Array, "B Q"] | None = None,
    margins: Float[Array, "B P"] | float = 0.0,
) -> dict[str, WeightedSum]:
    """The losses `score`, `centring` and `critique`; with `tie_pairs` also `ties`, and tied pairs then count in centring and
    critique as well.

    The weight of each sum depends only on the batch, not on the parameters.
    """
    chosen, rejected = gather_pairs(rewards, pairs, pair_weights)
    sums = {"score": score_sum(chosen, rejected, pair_weights, margins)}
    if tie_pairs is not None:
        first, second = gather_pairs(rewards, tie_pairs, tie_weights)
        sums["ties"] = tie_sum(first, second, tie_weights)
        pairs = jnp.concatenate([pairs, tie_pairs], axis=1)
        pair_weights = jnp.concatenate([pair_weights, tie_weights], axis=1)
        chosen, rejected = gather_pairs(rewards, pairs, pair_weights)
    sums["centring"] = centring_sum(chosen, rejected, pair_weights)
    sums["critique"] = critique_sum(critique_logps, critique_lengths, pairs, pair_weights, critique_weighting)
    return sums


def reward_metrics(
    rewards: Float[Array, "B R"],
    pairs: Int[Array, "B P 2"],
    pair_weights: Float[Array, "B P"],
    losses: dict[str, WeightedSum],
) -> dict[str, Metric]:
    """Metrics under TRL's names: `accuracy` (equal rewards count as wrong), `margin`, and `min_reward`, `mean_reward`,
    `max_reward` over both sides of each strict pair; also `score/loss` and `critique/loss`, taken from `losses`. No gradient.
    """
    rewards, losses = jax.lax.stop_gradient((rewards, losses))
    chosen, rejected = gather_pairs(rewards, pairs, pair_weights)
    sides, side_weights = jnp.stack([chosen, rejected]), jnp.stack([pair_weights, pair_weights])
    return {
        "accuracy": weighted_sum((chosen > rejected).astype(jnp.float32), pair_weights),
        "margin": weighted_sum(chosen - rejected, pair_weights),
        "min_reward": minimum(sides, side_weights),
        "mean_reward": weighted_sum(sides, side_weights),
        "max_reward": maximum(sides, side_weights),
        "score/loss": losses["score"],
        "critique/loss": losses["critique"],
    }
