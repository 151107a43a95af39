"""MM-DPO: a policy learns from ordered pairs, with a β that depends on the pair's margin (arXiv 2502.10391, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives import (
    Metric,
    Outputs,
    PairLogps,
    WeightedSum,
    gather_pairs,
    length_desensitized_pair_logps,
    pair_logps,
    preference,
    reward_scaling,
    target_counts,
    weighted_sum,
)
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.tasks.pairs import PairTask, reward_margins, side_mean
from mmrlhf_jax.tasks.task import PAPER, Margins, Terms

MARGINS = {"rewards": "reward margins", "human_scores": "margins of human scores", "stored": "stored margins"}


class PreferenceTask(PairTask):
    """A mix of pair losses with β(δ), plus γ (`sft_weight`) times the token mean of the chosen responses' negative
    log-probs."""

    settings: config.Preference
    margins_key, no_margins = "scaling.margins", "scaling.mode: fixed"

    @property
    def margins(self) -> Margins:
        scaling = self.settings.scaling
        return scaling.margins if scaling.mode in ("margin", "ls_factor") else None

    def check_weights(self, records: list[RankedRecord], encoder: GroupEncoder, data: config.Data, named: str) -> None:
        if not self._drops_negative_margins:
            return
        margins = np.concatenate([encoder.margins(record, self.settings.scaling.margins) for record in records])
        count = int((margins < 0).sum())
        against = f"{named}: {count} of {len(margins)} pairs have a negative margin, and negative_margins: drop leaves them out"
        if count == len(margins):
            raise UserError(
                f"{against}, so that nothing would be learnt; set objective.scaling.negative_margins: clamp, or look whether"
                " ranks or rewards are the wrong way round"
            )
        if count:
            say(f"{against} of the loss")

    @property
    def _drops_negative_margins(self) -> bool:
        return self.settings.scaling.mode == "margin" and self.settings.scaling.negative_margins == "drop"

    @property
    def coefficients(self) -> Mapping[str, float]:
        return self.settings.losses | {"chosen_sft": self.settings.sft_weight}

    def terms(self, outputs: Outputs, batch: RowBatch, key: jax.Array, reference: Outputs | None = None) -> Terms:
        settings, weights = self.settings, batch.pair_weights
        logps = reference_pair_logps(settings, outputs, batch, reference)
        # Missing rewards give δ = 0. Only held-out data can lack them; training data is refused (`open_training_examples`).
        margins = pair_margins(settings, batch)
        beta = pair_betas(settings, margins, logps, weights, key)
        learnt = jnp.where(margins < 0, 0, weights) if self._drops_negative_margins else weights
        chosen_logps, _ = gather_pairs(outputs.logps, batch.pairs, weights)
        sums = preference.preference_losses(
            list(settings.losses),
            logps,
            beta,
            learnt,
            chosen_logps=chosen_logps,
            label_smoothing=settings.label_smoothing,
            discopop_tau=settings.discopop_tau,
            f_divergence=settings.f_divergence,
            f_alpha=settings.f_alpha,
        )
        sums["chosen_sft"] = preference.sft_sum(chosen_logps, logps.chosen_lengths, learnt)
        known = None if self.margins is None else margins
        metrics = preference.preference_metrics(logps, settings.beta, beta, weights, known, beta_range(settings))
        return sums, metrics | token_metrics(outputs, batch, logps)

    def shape_settings(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude={"scaling"})

    def describe(self) -> tuple[str, str]:
        losses, scaling = self.settings.losses, self.settings.scaling
        weighed = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in losses.items())
        loss = "DPO" if list(losses) == ["sigmoid"] else f"the preference loss {weighed}"
        unscaled = scaling.w == 0 or (scaling.mode == "margin" and scaling.k == 0)  # every pair's beta is the same
        mode = "fixed" if unscaled else scaling.mode
        if mode == "margin":
            name = "MM-DPO" if loss == "DPO" else f"{loss} under Dynamic Reward Scaling"
            return f"a policy aligned with {name} (beta by {MARGINS[scaling.margins]})", PAPER
        betas = {"fixed": "a fixed beta", "ls_factor": "beta by ls_factor", "batch_implicit": "beta by implicit margins"}
        return f"a policy aligned with {loss} ({betas[mode]})", ""


def reference_pair_logps(
    settings: config.Preference, outputs: Outputs, batch: RowBatch, reference: Outputs | None
) -> PairLogps:
    """Log-probs of both sides of every pair under policy and reference; with `ld_alpha` < 1 the longer side's tail has a lower
    weight (LD-DPO). `reference` None: the batch has the reference log-probs."""
    count = batch.ends.shape[1]
    if settings.ld_alpha == 1:
        reference_logps = batch.reference_logps if reference is None else reference.logps
        lengths = target_counts(batch.responses, count)
        return pair_logps(outputs.logps, reference_logps, lengths, batch.pairs, batch.pair_weights)
    layout = (batch.responses, count, batch.pairs, batch.pair_weights)
    return length_desensitized_pair_logps(outputs.token_logps, reference.token_logps, *layout, settings.ld_alpha)


def pair_margins(settings: config.Preference, batch: RowBatch) -> Float[Array, "B P"]:
    """δ of every pair, from the experiment's source of margins; 0 if it is missing."""
    return jnp.nan_to_num(batch.pair_margins) if settings.scaling.margins == "stored" else reward_margins(batch)


def beta_range(settings: config.Preference) -> tuple[float, float] | None:
    """The range of `beta/histogram`: the paper's [β, (1 + w)·β] for modes that stay in it, else a wider one.

    Values outside are counted in the first or last bin. None if all pairs have the same β.
    """
    scaling, beta = settings.scaling, settings.beta
    if scaling.mode == "fixed":
        return None
    if scaling.mode == "margin" and scaling.negative_margins != "unclamped":
        return beta, beta * (1 + scaling.w)
    return 0.0, beta * (1 + 2 * scaling.w)


def pair_betas(settings: config.Preference, margins, logps: PairLogps, weights, key: jax.Array) -> Float[Array, "B P"]:
    """β of every pair by the experiment's scaling mode; no gradient flows through it."""
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
        "entropy": side_mean(outputs.entropy, target_counts(batch.responses, batch.ends.shape[1]), batch),
    }
