"""The names of the preference losses and their options. It imports no jax, so that configurations are checked without it."""

from __future__ import annotations

from mmrlhf_jax.errors import UserError

LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# The other losses use s⁺ and s⁻ separately, so that the f-divergence's normaliser does not cancel.
F_DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


def check_options(name: str, label_smoothing: float, f_divergence: str) -> None:
    """Raise UserError for an unknown loss or divergence, and for options with which the loss is not defined."""
    if name not in LOSSES:
        raise UserError(f"unknown preference loss {name!r}; choose from {', '.join(LOSSES)}")
    if f_divergence not in F_DIVERGENCES:
        raise UserError(f"unknown f_divergence {f_divergence!r}; choose from {', '.join(F_DIVERGENCES)}")
    if f_divergence != "reverse_kl" and name not in F_DIVERGENCE_LOSSES:
        known = ", ".join(F_DIVERGENCE_LOSSES)
        raise UserError(f"loss {name!r} needs f_divergence 'reverse_kl'; {f_divergence!r} is defined for {known}")
    if not 0 <= label_smoothing <= 1:
        raise UserError(f"label_smoothing must lie in [0, 1], found {label_smoothing}")
    if name == "robust" and label_smoothing >= 0.5:
        raise UserError(f"loss 'robust' needs label_smoothing in [0, 0.5), found {label_smoothing}")
    if name == "exo_pair" and not 0 < label_smoothing < 1:
        raise UserError(f"loss 'exo_pair' needs label_smoothing in (0, 1), such as 1e-3; found {label_smoothing}")
