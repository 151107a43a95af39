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
from mmrlhf_jax.inference.forward import target_counts
from mmrlhf_jax.objectives import preference, reward_model, reward_scaling
from mmrlhf_jax.objectives.outputs import Outputs
from mmrlhf_jax.objectives.pairs import PairLogps, gather_pairs, length_desensitized_pair_logps, pair_logps
from mmrlhf_jax.objectives.weighted import Metric, WeightedSum, weighted_sum


class Objective(NamedTuple):
    """`terms(outputs, batch, key, reference) -> (sums by name, metrics)`; the loss is Σ coefficients[k] · mean of sum k.

    `reference` are the reference model's outputs; with None the batch brings its log-probs.
    """

    coefficients: Mapping[str, float]
    terms: Callable[[Outputs, RowBatch, jax.Array, Outputs | None], tuple[dict[str, WeightedSum], dict[str, Metric]]]


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

    smoothing = dict(label_smoothing=settings.label_smoothing, discopop_tau=settings.discopop_tau)
    divergence = dict(f_divergence=settings.f_divergence, f_alpha=settings.f_alpha)

    def terms(outputs: Outputs, batch: RowBatch, key: jax.Array, reference: Outputs | None = None):
        weights = batch.pair_weights
        logps = reference_pair_logps(settings, outputs, batch, reference)
        # Training refuses data without rewards where β needs them; an evaluation set may lack them: δ = 0.
        margins = pair_margins(settings, batch)
        beta = pair_betas(settings, margins, logps, weights, key)
        learnt = weights
        if settings.scaling.mode == "margin" and settings.scaling.negative_margins == "drop":
            learnt = jnp.where(margins < 0, 0, weights)
        chosen_logps, _ = gather_pairs(outputs.logps, batch.pairs, weights)
        sums = preference.preference_losses(
            list(settings.losses), logps, beta, learnt, chosen_logps=chosen_logps, **smoothing, **divergence
        )
        sums["chosen_sft"] = preference.sft_sum(chosen_logps, logps.chosen_lengths, learnt)
        known = settings.scaling.mode in ("margin", "ls_factor")
        metrics = preference.preference_metrics(
            logps, settings.beta, beta, weights, margins if known else None, beta_range(settings)
        )
        return sums, metrics | token_metrics(outputs, batch, logps)

    return Objective(settings.losses | {"chosen_sft": settings.sft_weight}, terms)


def reference_pair_logps(
    settings: config.Preference, outputs: Outputs, batch: RowBatch, reference: Outputs | None
) -> PairLogps:
    """Both sides of every pair under policy and reference; with `ld_alpha` the longer side's tail counts less (LD-DPO)."""
    if settings.ld_alpha == 1:
        reference_logps = batch.reference_logps if reference is None else reference.logps
        return pair_logps(outputs.logps, reference_logps, target_counts(batch), batch.pairs, batch.pair_weights)
    layout = (batch.responses, batch.ends.shape[1], batch.pairs, batch.pair_weights)
    return length_desensitized_pair_logps(outputs.token_logps, reference.token_logps, *layout, settings.ld_alpha)


def pair_margins(settings: config.Preference, batch: RowBatch) -> Float[Array, "B P"]:
    """δ of every pair, from where the experiment takes it; 0 where there is none."""
    return jnp.nan_to_num(batch.pair_margins) if settings.scaling.margins == "stored" else reward_margins(batch)


def reward_margins(batch: RowBatch) -> Float[Array, "B P"]:
    """δ = r⁺ − r⁻ of the batch's stored rewards; 0 where one of the two is missing."""
    chosen, rejected = gather_pairs(jnp.nan_to_num(batch.rewards), batch.pairs, batch.pair_weights)
    # A reward that is missing is not 0, and half a difference is none.
    missing = gather_pairs(jnp.isnan(batch.rewards).astype(jnp.float32), batch.pairs, batch.pair_weights)
    return jnp.where(missing[0] + missing[1] > 0, 0, chosen - rejected)


def beta_range(settings: config.Preference) -> tuple[float, float] | None:
    """The range of `beta/histogram`: the paper's where β keeps to it, a wider one for the other modes.

    What lies beyond is counted at its ends. None where there is only one β.
    """
    scaling, beta = settings.scaling, settings.beta
    if scaling.mode == "fixed":
        return None
    if scaling.mode == "margin" and scaling.negative_margins != "unclamped":
        return beta, beta * (1 + scaling.w)
    return 0.0, beta * (1 + 2 * scaling.w)


def pair_betas(settings: config.Preference, margins, logps: PairLogps, weights, key: jax.Array) -> Float[Array, "B P"]:
    """β of every pair under the experiment's scaling mode; constants with respect to the parameters."""
    scaling, beta = settings.scaling, settings.beta
    match scaling.mode:
        case "margin":
            return reward_scaling.margin(
                margins, beta, scaling.w, scaling.k, clamp_negative=scaling.negative_margins != "unclamped"
            )
        case "fixed":
            return reward_scaling.fixed(margins, beta)
        case "ls_factor":
            return reward_scaling.ls_factor(margins, beta, scaling.w)
        case "batch_implicit":
            implicit = logps.chosen_logratios - logps.rejected_logratios
            return reward_scaling.batch_implicit(key, implicit, weights, beta, scaling.w)


def token_metrics(outputs: Outputs, batch: RowBatch, logps: PairLogps) -> dict[str, Metric]:
    """TRL's token-weighted means over the sides of the pairs (`entropy` over both)."""
    weights = batch.pair_weights
    correct, _ = gather_pairs(jax.lax.stop_gradient(outputs.correct), batch.pairs, weights)
    logits = gather_pairs(jax.lax.stop_gradient(outputs.logits), batch.pairs, weights)
    lengths = [weighted_sum(n, weights).total for n in (logps.chosen_lengths, logps.rejected_lengths)]
    return {
        "mean_token_accuracy": WeightedSum(weighted_sum(correct, weights).total, lengths[0]),
        "logits/chosen": WeightedSum(weighted_sum(logits[0], weights).total, lengths[0]),
        "logits/rejected": WeightedSum(weighted_sum(logits[1], weights).total, lengths[1]),
        "entropy": side_mean(outputs.entropy, target_counts(batch), batch),
    }


def reward_objective(settings: config.RewardModel) -> Objective:
    """Critique loss + score loss, critiques teacher-forced. A response without a critique is only scored."""

    def terms(outputs: Outputs, batch: RowBatch, key: jax.Array, reference: Outputs | None = None):
        lengths = target_counts(batch)
        options = {} if settings.margins == "none" else {"margins": reward_margins(batch)}
        if settings.tie_weight:
            options |= {"tie_pairs": batch.pairs, "tie_weights": batch.tie_weights}
        sums = reward_model.reward_losses(
            outputs.rewards,
            batch.pairs,
            batch.pair_weights,
            outputs.logps,
            lengths,
            settings.critique_weighting,
            **options,
        )
        metrics = reward_model.reward_metrics(outputs.rewards, batch.pairs, batch.pair_weights, sums)
        return sums, metrics | {"critique/token_accuracy": side_mean(outputs.correct, lengths, batch)}

    coefficients = {"score": settings.score_weight, "critique": settings.critique_weight, "centring": settings.centring}
    if settings.tie_weight:
        coefficients["ties"] = settings.tie_weight
    return Objective(coefficients, terms)


def side_mean(sums: Float[Array, "B R"], lengths: Float[Array, "B R"], batch: RowBatch) -> WeightedSum:
    """The mean per target token, over both sides of every pair, of what is summed per response."""
    found = [
        sum(weighted_sum(side, batch.pair_weights).total for side in gather_pairs(x, batch.pairs, batch.pair_weights))
        for x in (jax.lax.stop_gradient(sums), lengths)
    ]
    return WeightedSum(*found)


def supervised_objective() -> Objective:
    """Token mean of the negative log-prob over the learnt responses."""

    def terms(outputs: Outputs, batch: RowBatch, key: jax.Array, reference: Outputs | None = None):
        weights, lengths = batch.response_weights, target_counts(batch)
        tokens = weighted_sum(lengths, weights).total
        sums = {"sft": WeightedSum(weighted_sum(-outputs.logps, weights).total, tokens)}
        correct = weighted_sum(jax.lax.stop_gradient(outputs.correct), weights).total
        entropy = weighted_sum(jax.lax.stop_gradient(outputs.entropy), weights).total
        return sums, {"mean_token_accuracy": WeightedSum(correct, tokens), "entropy": WeightedSum(entropy, tokens)}

    return Objective({"sft": 1.0}, terms)
