"""The DPO family: TRL's names and TRL 1.16's formulas (`trl/trainer/dpo_trainer.py`), per pair and per batch.

Notation: s⁺, s⁻ are the log-ratios log π/π_ref of the chosen and rejected response, δ = f(s⁺) − f(s⁻) with f the score of the
f-divergence (f(s) = s for `reverse_kl`), |y| lengths in target tokens, ε label smoothing. β may differ between pairs
(`reward_scaling`). Up to |s| = 1e4 every loss and gradient is finite, unless the loss's value itself overflows float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.loss_names import check_options
from mmrlhf_jax.objectives.pairs import PairLogps, PerPair
from mmrlhf_jax.objectives.weighted import Metric, WeightedSum, divide, histogram, maximum, minimum, weighted_sum

# Keeps exp finite in float32. TRL has this bound for alpha_divergence; here it also holds for forward_kl (the case α = 0).
_MAX_EXPONENT = 80.0


def pair_loss(
    name: str,
    logps: PairLogps,
    beta: PerPair | float,
    weights: PerPair,
    *,
    label_smoothing: float = 0.0,
    f_divergence: str = "reverse_kl",
    f_alpha: float = 0.5,
    discopop_tau: float = 0.05,
) -> PerPair:
    """The loss of every pair, not yet weighted. `weights` (0 = unused slot) are used only by `aot` and `aot_unpaired`, which
    sort the batch.

    `label_smoothing` applies to exo_pair, robust, aot and aot_unpaired as in TRL, and to `sigmoid` as in conservative DPO (TRL
    ≥ 1.0 ignores it there); other losses ignore it. `sft` has no value per pair: see `sft_sum`. Raises UserError for an unknown
    name and for options that `check_options` rejects.
    """
    check_options(name, label_smoothing, f_divergence)
    chosen, rejected = logps.chosen_logratios, logps.rejected_logratios
    f_chosen, f_rejected = (divergence_score(s, f_divergence, f_alpha) for s in (chosen, rejected))
    delta = f_chosen - f_rejected
    norm_delta = f_chosen / jnp.maximum(logps.chosen_lengths, 1) - f_rejected / jnp.maximum(logps.rejected_lengths, 1)
    match name:
        case "sigmoid":
            return _smoothed(beta * delta, label_smoothing)
        case "hinge":
            return jax.nn.relu(1 - beta * delta)
        case "ipo":
            return (norm_delta - 1 / (2 * beta)) ** 2
        case "exo_pair":
            return _exo(beta * delta, label_smoothing)
        case "nca_pair":
            return -log_sigmoid(beta * chosen) - 0.5 * log_sigmoid(-beta * chosen) - 0.5 * log_sigmoid(-beta * rejected)
        case "robust":
            clean, flipped = -log_sigmoid(beta * delta), -log_sigmoid(-beta * delta)
            return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
        case "bco_pair":
            return -log_sigmoid(beta * chosen) - log_sigmoid(-beta * rejected)
        case "sppo_hard":
            return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
        case "aot":
            policy = logps.policy_chosen - logps.policy_rejected
            reference = logps.reference_chosen - logps.reference_rejected
            return _transported(policy, reference, beta, weights, label_smoothing)
        case "aot_unpaired":
            return _transported(chosen, rejected, beta, weights, label_smoothing)
        case "apo_zero":
            return sigmoid(-beta * chosen) + sigmoid(beta * rejected)
        case "apo_down":
            return sigmoid(beta * chosen) + sigmoid(-beta * (chosen - rejected))
        case "discopop":
            return _discopop(beta * delta, discopop_tau)
        case "sigmoid_norm":
            return -log_sigmoid(beta * norm_delta)
    raise UserError(f"loss {name!r} is a mean over tokens and has no value per pair; use preference_losses")


def sft_sum(chosen_logps: PerPair, lengths: PerPair, weights: PerPair) -> WeightedSum:
    """Mean over tokens of the negative log-prob of chosen responses, once per pair: −Σ w·log π(y⁺) / Σ w·|y⁺|."""
    return WeightedSum(weighted_sum(-chosen_logps, weights).total, weighted_sum(lengths, weights).total)


def preference_losses(
    names: Sequence[str],
    logps: PairLogps,
    beta: PerPair | float,
    weights: PerPair,
    *,
    label_smoothing: float | Mapping[str, float] = 0.0,
    chosen_logps: PerPair | None = None,
    sft_weights: PerPair | None = None,
    **options: object,
) -> dict[str, WeightedSum]:
    """The named losses of a batch, to be combined by `weighted.mix`; MPO, for example, is sigmoid .8, bco_pair .2, sft 1.

    `label_smoothing` may be a mapping by loss (0 for a missing name), which a mix of `exo_pair` with TRL's `sigmoid` needs.
    `chosen_logps` are plain log-prob sums for `sft`, needed if those in `logps` are length-desensitized, and `sft_weights` are
    the weights of its pairs, needed if they are not those of the pairs that are compared. `options` as in `pair_loss`. The
    weight of each sum depends only on lengths and pair weights.
    """
    chosen_logps = logps.policy_chosen if chosen_logps is None else chosen_logps
    sft_weights = weights if sft_weights is None else sft_weights
    sums = {}
    for name in names:
        smoothing = label_smoothing.get(name, 0.0) if isinstance(label_smoothing, Mapping) else label_smoothing
        if name == "sft":
            sums[name] = sft_sum(chosen_logps, logps.chosen_lengths, sft_weights)
        else:
            losses = pair_loss(name, logps, beta, weights, label_smoothing=smoothing, **options)
            sums[name] = weighted_sum(losses, weights)
    return sums


def preference_metrics(
    logps: PairLogps,
    base_beta: float,
    beta: PerPair | float,
    weights: PerPair,
    reward_margins: PerPair | None = None,
    beta_range: tuple[float, float] | None = None,
    beta_weights: PerPair | None = None,
) -> dict[str, Metric]:
    """Metrics: TRL's `rewards/*` and `logps/*`; β as `beta/mean|min|max` and, with a `beta_range`, as a histogram; with
    `reward_margins`, their mean `reward_model/margin`, and `reward_model/disagreement`, the share of pairs that the reward
    model orders against the human ranking. `beta_weights` are those of β where not all pairs have a β; None: `weights`.

    A reward is base_beta·s, with the unscaled β and whatever the f-divergence. `rewards/accuracies` is strict: equal rewards
    count as wrong. No gradient.
    """
    logps, beta = jax.lax.stop_gradient((logps, jnp.broadcast_to(beta, weights.shape)))
    chosen, rejected = base_beta * logps.chosen_logratios, base_beta * logps.rejected_logratios
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).astype(jnp.float32),
        "rewards/margins": chosen - rejected,
        "logps/chosen": logps.policy_chosen,
        "logps/rejected": logps.policy_rejected,
    }
    if reward_margins is not None:
        values["reward_model/margin"] = reward_margins
        values["reward_model/disagreement"] = (reward_margins < 0).astype(jnp.float32)
    metrics: dict[str, Metric] = {name: weighted_sum(value, weights) for name, value in values.items()}
    shares = weights if beta_weights is None else beta_weights
    if beta_range is not None:
        metrics["beta/histogram"] = histogram(beta, shares, *beta_range)
    extremes = {"beta/min": minimum(beta, shares), "beta/max": maximum(beta, shares)}
    return metrics | {"beta/mean": weighted_sum(beta, shares)} | extremes


def divergence_score(logratios: Float[Array, "*n"], f_divergence: str, f_alpha: float) -> Float[Array, "*n"]:
    """f'(π/π_ref) as a function of s = log π/π_ref, which replaces s in f-DPO (arXiv 2309.16240; constants as in TRL)."""
    match f_divergence:
        case "forward_kl":
            return _power_score(logratios, -1.0)
        case "js_divergence":
            return math.log(2) + log_sigmoid(logratios)
        case "alpha_divergence" if abs(f_alpha - 1) >= 1e-6:
            return _power_score(logratios, f_alpha - 1)
    return logratios


def _power_score(logratios: Float[Array, "*n"], power: float) -> Float[Array, "*n"]:
    return jnp.expm1(jnp.minimum(power * logratios, _MAX_EXPONENT)) / power


def _smoothed(logits: Float[Array, "*n"], epsilon: float) -> Float[Array, "*n"]:
    """Cross-entropy of σ(logits) with a label that is wrong with probability ε."""
    return -(1 - epsilon) * log_sigmoid(logits) - epsilon * log_sigmoid(-logits)


def _exo(logits: Float[Array, "*n"], epsilon: float) -> Float[Array, "*n"]:
    """KL of (σ(x), σ(−x)) from (1 − ε, ε)."""
    right = sigmoid(logits) * (log_sigmoid(logits) - math.log1p(-epsilon))
    wrong = sigmoid(-logits) * (log_sigmoid(-logits) - math.log(epsilon))
    return right + wrong


def _discopop(logits: Float[Array, "*n"], tau: float) -> Float[Array, "*n"]:
    # σ(x/τ)·e^{−x} as one exponential, because for x far below zero the factors are 0 and inf, whose product would be NaN.
    exponential = jnp.exp(log_sigmoid(logits / tau) - logits)
    return -log_sigmoid(logits) * sigmoid(-logits / tau) + exponential


def _transported(
    a: PerPair,
    b: PerPair,
    beta: PerPair | float,
    weights: PerPair,
    epsilon: float,
) -> PerPair:
    """Smoothed logistic loss of a − b after optimal transport (in 1-D: sorting) between the batch's a and b; each loss is
    placed at the pair of its a, whose β it uses.

    With equal weights this sorts both and subtracts, as TRL does. In general it matches quantiles of the two weighted samples,
    so that a pair of weight ½ counts as half a pair, and an unused slot (weight 0) does not count.
    """
    flat_a, flat_b, mass_of = a.ravel(), b.ravel(), weights.ravel()
    flat_beta = jnp.broadcast_to(beta, weights.shape).ravel()
    order_a, order_b = jnp.argsort(flat_a), jnp.argsort(flat_b)
    ends_a, ends_b = jnp.cumsum(mass_of[order_a]), jnp.cumsum(mass_of[order_b])
    # Between two neighbouring boundaries of the merged cumulative weights, exactly one a is matched with one b.
    ends = jnp.sort(jnp.concatenate([ends_a, ends_b]))
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    mass, middle = ends - starts, (starts + ends) / 2
    i = order_a[jnp.searchsorted(ends_a, middle, side="right").clip(max=mass_of.size - 1)]
    j = order_b[jnp.searchsorted(ends_b, middle, side="right").clip(max=mass_of.size - 1)]
    losses = _smoothed(flat_beta[i] * (flat_a[i] - flat_b[j]), epsilon)
    return divide(jnp.zeros_like(flat_a).at[i].add(mass * losses), mass_of).reshape(weights.shape)
