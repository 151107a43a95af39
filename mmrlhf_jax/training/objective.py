"""From model outputs to a total loss: joins the pure functions of `objectives/` as the experiment asks.

An objective maps `Outputs` and a batch to named `WeightedSum`s and metrics. It sees log-probs and rewards per response,
never the model; the weights of its sums depend on the batch alone, so that accumulation divides by global denominators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision, Visual
from mmrlhf_jax.objectives import preference, reward_model, reward_scaling
from mmrlhf_jax.objectives.logprobs import sum_by_response, target_logps
from mmrlhf_jax.objectives.pairs import PairLogps, gather_pairs, pair_logps
from mmrlhf_jax.objectives.weighted import Metric, WeightedSum, weighted_sum


class Outputs(NamedTuple):
    """Per response: sums over its target tokens, and its reward (zeros without a reward head)."""

    logps: Float[Array, "B R"]
    correct: Float[Array, "B R"]  # targets that were the most likely token
    logits: Float[Array, "B R"]  # mean over the vocabulary, summed over targets
    rewards: Float[Array, "B R"]


class Objective(NamedTuple):
    """`terms(outputs, batch, key) -> (sums by name, metrics)`; the loss is Σ coefficients[k] · mean of sum k."""

    coefficients: Mapping[str, float]
    terms: Callable[[Outputs, RowBatch, jax.Array], tuple[dict[str, WeightedSum], dict[str, Metric]]]


def forward(model: LlavaOnevision, batch: RowBatch, *, chunk: int) -> Outputs:
    """Run a row batch through the model: hidden states, log-probs of the targets only, rewards at the responses' ends."""
    visual = Visual(batch.tiles, batch.visual_slots, batch.visual_taps, batch.visual_weights)
    hidden = model(batch.tokens, batch.positions, batch.visible_until, visual)
    targets = target_logps(hidden, model.language.vocabulary(), batch.targets, batch.predictors, chunk=chunk)
    count = batch.ends.shape[1]
    sums = [sum_by_response(values, batch.responses, count) for values in targets]
    if model.config.reward_head is None:
        rewards = jnp.zeros(batch.ends.shape, jnp.float32)
    else:
        ends = jnp.minimum(batch.ends, batch.tokens.shape[1] - 1)
        rewards = model.reward_head(jnp.take_along_axis(hidden, ends[..., None], axis=1))
        rewards = jnp.where(batch.ends < batch.tokens.shape[1], rewards, 0)
    return Outputs(*sums, rewards)


def target_counts(batch: RowBatch) -> Float[Array, "B R"]:
    """Target tokens per response."""
    return sum_by_response(jnp.ones(batch.responses.shape, jnp.float32), batch.responses, batch.ends.shape[1])


def make_objective(settings: config.Objective) -> Objective:
    match settings:
        case config.Preference():
            return preference_objective(settings)
        case config.RewardModel():
            return reward_objective(settings)
        case config.Supervised():
            return supervised_objective()


def preference_objective(settings: config.Preference) -> Objective:
    """MM-DPO: the mixed pair losses under β(δ), and γ times the token mean of the chosen responses."""

    def terms(outputs: Outputs, batch: RowBatch, key: jax.Array):
        weights = batch.pair_weights
        logps = pair_logps(outputs.logps, batch.reference_logps, target_counts(batch), batch.pairs, weights)
        # Training refuses data without rewards where β needs them; an evaluation set may lack them: δ = 0.
        chosen, rejected = gather_pairs(jnp.nan_to_num(batch.rewards), batch.pairs, weights)
        beta = pair_betas(settings, chosen - rejected, logps, weights, key)
        sums = preference.preference_losses(
            list(settings.losses),
            logps,
            beta,
            weights,
            label_smoothing=settings.label_smoothing,
            f_divergence=settings.f_divergence,
            f_alpha=settings.f_alpha,
            discopop_tau=settings.discopop_tau,
        )
        sums["chosen_sft"] = preference.sft_sum(logps.policy_chosen, logps.chosen_lengths, weights)
        known = settings.scaling.mode in ("margin", "ls_factor")
        metrics = preference.preference_metrics(logps, settings.beta, beta, weights, chosen - rejected if known else None)
        return sums, metrics | token_metrics(outputs, batch, logps)

    return Objective(settings.losses | {"chosen_sft": settings.sft_weight}, terms)


def pair_betas(settings: config.Preference, margins, logps: PairLogps, weights, key: jax.Array) -> Float[Array, "B P"]:
    """β of every pair under the experiment's scaling mode; constants with respect to the parameters."""
    scaling, beta = settings.scaling, settings.beta
    match scaling.mode:
        case "margin":
            return reward_scaling.margin(margins, beta, scaling.w, scaling.k, clamp_negative=scaling.clamp_negative)
        case "fixed":
            return reward_scaling.fixed(margins, beta)
        case "ls_factor":
            return reward_scaling.ls_factor(margins, beta, scaling.w)
        case "batch_implicit":
            implicit = logps.chosen_logratios - logps.rejected_logratios
            return reward_scaling.batch_implicit(key, implicit, weights, beta, scaling.w)


def token_metrics(outputs: Outputs, batch: RowBatch, logps: PairLogps) -> dict[str, Metric]:
    """TRL's token-weighted means over the sides of the pairs."""
    weights = batch.pair_weights
    correct, _ = gather_pairs(jax.lax.stop_gradient(outputs.correct), batch.pairs, weights)
    logits = gather_pairs(jax.lax.stop_gradient(outputs.logits), batch.pairs, weights)
    lengths = [weighted_sum(n, weights).total for n in (logps.chosen_lengths, logps.rejected_lengths)]
    return {
        "mean_token_accuracy": WeightedSum(weighted_sum(correct, weights).total, lengths[0]),
        "logits/chosen": WeightedSum(weighted_sum(logits[0], weights).total, lengths[0]),
        "logits/rejected": WeightedSum(weighted_sum(logits[1], weights).total, lengths[1]),
    }


def reward_objective(settings: config.RewardModel) -> Objective:
    """Critique loss + score loss, critiques teacher-forced."""

    def terms(outputs: Outputs, batch: RowBatch, key: jax.Array):
        lengths = target_counts(batch)
        sums = reward_model.reward_losses(
            outputs.rewards, batch.pairs, batch.pair_weights, outputs.logps, lengths, settings.critique_weighting
        )
        metrics = reward_model.reward_metrics(outputs.rewards, batch.pairs, batch.pair_weights, sums)
        correct = WeightedSum(jax.lax.stop_gradient(outputs.correct).sum(), lengths.sum())
        return sums, metrics | {"critique/token_accuracy": correct}

    coefficients = {"score": settings.score_weight, "critique": settings.critique_weight, "centring": settings.centring}
    return Objective(coefficients, terms)


def supervised_objective() -> Objective:
    """Token mean of the negative log-prob over the learnt responses."""

    def terms(outputs: Outputs, batch: RowBatch, key: jax.Array):
        weights, lengths = batch.response_weights, target_counts(batch)
        tokens = weighted_sum(lengths, weights).total
        sums = {"sft": WeightedSum(weighted_sum(-outputs.logps, weights).total, tokens)}
        correct = weighted_sum(jax.lax.stop_gradient(outputs.correct), weights).total
        return sums, {"mean_token_accuracy": WeightedSum(correct, tokens)}

    return Objective({"sft": 1.0}, terms)
