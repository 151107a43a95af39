"""How the next token is chosen: greedily or by sampling, with parameters of every sequence's own.

All parameters are arrays, so that one program serves every request. A sequence's random numbers depend on its seed, on the
number of the sample and on the position alone: it gets the same tokens alone and in company, in any order.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from mmrlhf_jax.errors import UserError

MOST_SEED = 2**32 - 1
# Smaller temperatures and shares are 0 for an accelerator, or make infinite quotients; at this one nothing but the likeliest
# token is left as well.
LEAST = 1e-20


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Parameters of one request. The filters apply in the order temperature, top-k, top-p, min-p, each to what is left.

    Attributes:
        temperature: 0 chooses the likeliest token.
        top_k: the number of likeliest tokens to keep; 0: all.
        top_p: keep the likeliest tokens whose probabilities add up to this; 1: all.
        min_p: keep tokens with at least this share of the largest probability; 0: all.
        seed: of the random numbers, 0 to 2^32 - 1.

    Raises UserError for values that are not finite or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 0.0, 1.0, above=True)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check_whole("top_k", self.top_k, 2**31 - 1)
        _check_whole("seed", self.seed, MOST_SEED)


def _check(name: str, value: float, least: float, most: float, *, above: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value > most or value < least or (above and value == least):
        raise UserError(f"{name} must be a number {'above' if above else 'from'} {least:g} to {most:g}, found {value!r}")


def _check_whole(name: str, value: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UserError(f"{name} must be a whole number from 0 to {most}, found {value!r}")


GREEDY = Sampling()


class Draws(NamedTuple):
    """Parameters of B sequences at one step."""

    temperature: Float[Array, "B"]
    top_p: Float[Array, "B"]
    min_p: Float[Array, "B"]
    top_k: Int[Array, "B"]
    seed: UInt32[Array, "B"]
    sample: Int[Array, "B"]  # the number of the sample among those of its request
    position: Int[Array, "B"]  # of the chosen token among the new ones


def choose(logits: Float[Array, "B V"], draws: Draws) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """(the next tokens, their log-probs). Log-probs are those of the model: before temperature and filters."""
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    chosen = jax.lax.cond((draws.temperature > 0).any(), lambda: _sample(logits, draws, greedy), lambda: greedy)
    logp = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
    return chosen, logp


def _sample(logits, draws: Draws, greedy):
    # The largest is made 0 first: whatever the temperature, it then has the weight 1, and no number overflows.
    scaled = logits - logits.max(axis=-1, keepdims=True)
    scaled /= jnp.where(draws.temperature > 0, jnp.maximum(draws.temperature, LEAST), 1.0)[:, None]
    kept = jax.lax.cond(_filters(draws), lambda: keep(scaled, draws), lambda: jnp.ones(scaled.shape, bool))
    weights = jnp.where(kept, jnp.exp(scaled), 0.0)
    sums = jnp.cumsum(weights, axis=-1)
    # One random number per sequence, and the token in whose part of the sum of weights it lies.
    place = jax.vmap(_uniform)(draws.seed, draws.sample, draws.position) * sums[:, -1]
    reached = (sums > place[:, None]) & (weights > 0)
    # Rounding may leave a number that no sum exceeds; then it is the last kept token's.
    last = logits.shape[-1] - 1 - jnp.argmax(jnp.flip(weights > 0, axis=-1), axis=-1)
    sampled = jnp.where(reached.any(axis=-1), jnp.argmax(reached, axis=-1), last).astype(jnp.int32)
    return jnp.where(draws.temperature > 0, sampled, greedy)


def _uniform(seed, sample, position):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), position)
    return jax.random.uniform(key)


def _filters(draws: Draws):
    return ((draws.top_k > 0) | (draws.top_p < 1) | (draws.min_p > 0)).any()


def keep(scaled: Float[Array, "B V"], draws: Draws):
    """bool[B, V]: the tokens that the filters keep, at least one of every sequence. Tokens with equal logits are kept or left
    out together.

    Thresholds are found by bisection over the logits' bits, which needs no sorting: the k-th largest logit is the largest
    value that at least k logits reach.
    """
    order = _ordered(scaled)

    def threshold(reached):
        """uint32[B]: the largest value for which `reached(bool[B, V]: the logits of at least this value)` holds."""

        def bit(found, place):
            trial = found | (jnp.uint32(1) << place)
            return jnp.where(reached(order >= trial[:, None]), trial, found), None

        places = jnp.arange(31, -1, -1, dtype=jnp.uint32)
        return jax.lax.scan(bit, jnp.zeros(scaled.shape[0], jnp.uint32), places)[0]

    wanted = jnp.where(draws.top_k > 0, jnp.minimum(draws.top_k, scaled.shape[1]), scaled.shape[1])
    kept = order >= threshold(lambda above: above.sum(axis=-1) >= wanted)[:, None]
    weights = jnp.where(kept, jnp.exp(scaled - scaled.max(axis=-1, keepdims=True)), 0.0)
    total = jnp.maximum(draws.top_p, LEAST) * weights.sum(axis=-1)
    enough = threshold(lambda above: jnp.where(above, weights, 0.0).sum(axis=-1) >= total)
    kept &= (order >= enough[:, None]) | (draws.top_p >= 1)[:, None]
    return kept & (weights >= draws.min_p[:, None])  # the largest weight is 1


def _ordered(values: Float[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Unsigned numbers in the order of the floating-point values."""
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
