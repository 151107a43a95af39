"""MM-DPO: a policy learns from ordered pairs, with a β that depends on the pair's margin (arXiv 2502.10391, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.margin_summary import every_pair, scale_of, summarise
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.dynamic_scaling import median_k
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives import (
    Metric,
    Outputs,
    PairLogps,
    WeightedSum,
    beta_dpo,
    gather_pairs,
    length_desensitized_pair_logps,
    pair_logps,
    preference,
    reward_scaling,
    target_counts,
    weighted_sum,
)
from mmrlhf_jax.objectives.pair_draws import pair_noise
from mmrlhf_jax.progress import say
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.tasks.pairs import PairTask, reward_margins, side_mean
from mmrlhf_jax.tasks.task import PAPER, Margins, Statistics, Terms

MEAN, STD = "beta_dpo/mean", "beta_dpo/std"  # the running statistics of mode beta_dpo, as they are logged
BETA_DPO = "Method: beta-DPO (arXiv 2407.08639)."
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
        margins = every_pair(self.learnt_margins(records, encoder))
        count = int((margins < 0).sum())
        against = f"{named}: {count} of {len(margins)} pairs have a negative margin, and negative_margins: drop leaves them out"
        if count == len(margins):
            raise UserError(
                f"{against}, so that nothing would be learnt; set objective.scaling.negative_margins: clamp, or look whether"
                " ranks or rewards are the wrong way round"
            )
        if count:
            say(f"{against} of the loss")

    def learnt_margins(self, records: Sequence[RankedRecord], encoder: GroupEncoder) -> list[Float[np.ndarray, " pairs"]]:
        """For every record δ of the pairs that the encoder chooses, from the experiment's source of margins; NaN = none."""
        return [encoder.margins(record, self.settings.scaling.margins) for record in records]

    def settled(self, records: Sequence[RankedRecord], encoder: GroupEncoder, named: str) -> config.Preference:
        if not self.settings.from_data:
            return self.settings
        found = median_k(every_pair(self.learnt_margins(records, encoder)), f"{named}: objective.scaling.k: median")
        say(
            f"objective.scaling.k: median is {found.k:.4g} (the median of {found.positive} positive margins is"
            f" {found.median:.4g})"
        )
        return self._with_scaling(k=found.k)

    def margin_summary(self, records: Sequence[RankedRecord], encoder: GroupEncoder) -> dict[str, Any] | None:
        if self.settings.scaling.mode != "margin":
            return None
        margins = self.learnt_margins(records, encoder)
        return summarise(margins, scale_of(self.settings, margins, "objective.scaling"))

    @property
    def judging(self) -> PreferenceTask:
        return PreferenceTask(self._with_scaling(filtered=0.0)) if self.settings.scaling.filtered else self

    @property
    def without_data(self) -> PreferenceTask:
        return PreferenceTask(self._with_scaling(k=1.0)) if self.settings.from_data else self

    def _with_scaling(self, **changes: float) -> config.Preference:
        return self.settings.model_copy(update={"scaling": self.settings.scaling.model_copy(update=changes)})

    @property
    def _drops_negative_margins(self) -> bool:
        return self.settings.scaling.mode == "margin" and self.settings.scaling.negative_margins == "drop"

    @property
    def coefficients(self) -> Mapping[str, float]:
        return self.settings.losses | {"chosen_sft": self.settings.sft_weight}

    @property
    def statistics(self) -> Mapping[str, float]:
        return {MEAN: 0.0, STD: 0.0} if self.settings.scaling.mode == "beta_dpo" else {}

    def updated_statistics(
        self, statistics: Statistics, outputs: Outputs, batch: RowBatch, reference: Outputs | None = None
    ) -> Statistics:
        if self.settings.scaling.mode != "beta_dpo":
            return statistics
        margins = reference_pair_logps(self.settings, outputs, batch, reference).implicit_margins
        momentum = self.settings.scaling.momentum
        updated = beta_dpo.running_statistics(statistics[MEAN], statistics[STD], margins, batch.pair_weights, momentum)
        return dict(zip((MEAN, STD), updated, strict=True))

    def terms(
        self,
        outputs: Outputs,
        batch: RowBatch,
        key: jax.Array,
        reference: Outputs | None = None,
        statistics: Statistics | None = None,
    ) -> Terms:
        settings, weights = self.settings, batch.pair_weights
        logps = reference_pair_logps(settings, outputs, batch, reference)
        # Missing rewards give δ = 0. Only held-out data can lack them; training data is refused (`open_training_examples`).
        margins = pair_margins(settings, batch)
        learnt = jnp.where(margins < 0, 0, weights) if self._drops_negative_margins else weights
        noise = pair_noise(key, batch.response_ids, batch.pairs) if settings.draws else None
        if settings.scaling.mode == "beta_dpo":
            beta, compared = batch_beta(settings, logps, weights, noise, statistics)
        else:
            beta, compared = pair_betas(settings, margins, logps, weights, noise), learnt
        chosen_logps, _ = gather_pairs(outputs.logps, batch.pairs, weights)
        sums = preference.preference_losses(
            list(settings.losses),
            logps,
            beta,
            compared,
            chosen_logps=chosen_logps,
            sft_weights=learnt,
            label_smoothing=settings.label_smoothing,
            discopop_tau=settings.discopop_tau,
            f_divergence=settings.f_divergence,
            f_alpha=settings.f_alpha,
        )
        sums["chosen_sft"] = preference.sft_sum(chosen_logps, logps.chosen_lengths, learnt)
        known = None if self.margins is None else margins
        metrics = preference.preference_metrics(
            logps, settings.beta, beta, weights, known, beta_range(settings), beta_weights=learnt
        )
        return sums, metrics | token_metrics(outputs, batch, logps)

    def shape_settings(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude={"scaling"})

    def describe(self) -> tuple[str, str]:
        losses, scaling = self.settings.losses, self.settings.scaling
        weighed = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in losses.items())
        loss = "DPO" if list(losses) == ["sigmoid"] else f"the preference loss {weighed}"
        if scaling.mode == "beta_dpo" and (scaling.w or scaling.filtered):
            name = "beta-DPO" if loss == "DPO" else f"{loss} under beta-DPO"
            left_out = f", {scaling.filtered:.3g} of the pairs left out" if scaling.filtered else ""
            return f"a policy aligned with {name} (beta by running implicit margins{left_out})", BETA_DPO
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


def batch_beta(
    settings: config.Preference,
    logps: PairLogps,
    weights: Float[Array, "B P"],
    noise: Float[Array, "B P"] | None,
    statistics: Statistics,
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """(β of every pair, weights of the pairs that are compared) in mode beta_dpo; no gradient flows through them."""
    scaling, mean, std = settings.scaling, statistics[MEAN], statistics[STD]
    margins = jax.lax.stop_gradient(logps.implicit_margins)
    drawn = beta_dpo.drawn_pairs(noise, margins, weights, mean, std, scaling.filtered)
    beta = beta_dpo.batch_beta(margins, weights, drawn, mean, settings.beta, scaling.w)
    return beta, beta_dpo.drawn_weights(weights, drawn) if scaling.filtered else weights


def pair_betas(settings: config.Preference, margins, logps: PairLogps, weights, noise) -> Float[Array, "B P"]:
    """β of every pair by the experiment's scaling mode (any but beta_dpo); no gradient flows through it. `noise` is needed
    where the mode draws pairs."""
    scaling, beta = settings.scaling, settings.beta
    match scaling.mode:
        case "margin":
            if scaling.k == "median":
                raise ValueError("k: median must be settled before it is computed with (`Task.settled`)")
            return reward_scaling.margin(
                margins, beta, scaling.w, scaling.k, clamp_negative=scaling.negative_margins != "unclamped"
            )
        case "fixed":
            return reward_scaling.fixed(margins, beta)
        case "ls_factor":
            return reward_scaling.ls_factor(margins, beta, scaling.w)
        case "batch_implicit":
            return reward_scaling.batch_implicit(noise, logps.implicit_margins, weights, beta, scaling.w)


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
