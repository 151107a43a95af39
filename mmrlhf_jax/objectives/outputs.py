"""The model outputs that objectives are computed from."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float


class Outputs(NamedTuple):
    """Per response: sums over its target tokens, and its reward (zeros without a reward head). Per target: its log-prob."""

    logps: Float[Array, "B R"]
    correct: Float[Array, "B R"]  # number of targets that are the most likely token
    logits: Float[Array, "B R"]  # mean logit over the vocabulary, summed over targets
    entropy: Float[Array, "B R"]  # entropy of the predictions in nats, summed over targets
    rewards: Float[Array, "B R"]
    token_logps: Float[Array, "B M"]
