"""What objectives are computed from: figures of a model's responses, as arrays."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float


class Outputs(NamedTuple):
    """Per response: sums over its target tokens, and its reward (zeros without a reward head). Per target: its log-prob."""

    logps: Float[Array, "B R"]
    correct: Float[Array, "B R"]  # targets that were the most likely token
    logits: Float[Array, "B R"]  # mean over the vocabulary, summed over targets
    entropy: Float[Array, "B R"]  # of the predictions, in nats, summed over targets
    rewards: Float[Array, "B R"]
    token_logps: Float[Array, "B M"]
