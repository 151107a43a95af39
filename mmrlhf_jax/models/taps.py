"""Visual tokens as weighted sums of patch features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def weighted_taps(
    features: Float[Array, "B F E"], taps: Int[Array, "B V K"], weights: Float[Array, "B V K"]
) -> Float[Array, "B V E"]:
    """Sum over the taps of weight * feature, one tap at a time so that no [B, V, K, E] array exists."""

    def of_row(features, taps, weights):
        total = jnp.zeros((taps.shape[0], features.shape[1]), features.dtype)
        for i in range(taps.shape[1]):
            total += weights[:, i, None].astype(features.dtype) * features[taps[:, i]]
        return total

    return jax.vmap(of_row)(features, taps, weights)


def _taps_forward(features, taps, weights):
    # The empty array carries the dtype and number of the features.
    return weighted_taps(features, taps, weights), (features[..., :0], taps, weights)


def _taps_backward(kept, cotangent):
    """The gradient of the features, summed in float32, because the newline feature has hundreds of uses. Weights get none."""
    like, taps, weights = kept

    def of_row(taps, weights, cotangent):
        total = jnp.zeros((like.shape[1], cotangent.shape[1]), jnp.float32)
        for i in range(taps.shape[1]):
            total = total.at[taps[:, i]].add(weights[:, i, None] * cotangent.astype(jnp.float32))
        return total.astype(like.dtype)

    return jax.vmap(of_row)(taps, weights, cotangent), None, None


weighted_taps.defvjp(_taps_forward, _taps_backward)
