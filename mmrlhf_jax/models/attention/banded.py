"""Attention inside short segments, as plain XLA operations on any platform: its cost does not grow with the row's length."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.attention.xla import softmax_attend


def banded_attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    until: Int[Array, "B S"],
    band: int,
) -> Float[Array, "B S H D"]:
    """Every query attends to the keys of its own segment, whose end is `until`. Segments are consecutive slots, at most `band`
    of them, and begin anywhere; `band` divides S.

    The slots are computed in pieces of `band`, each against itself and the pieces beside it, in which all of its segments lie.
    """
    rows, length, heads, dim = q.shape
    pieces = length // band

    def pieced(x):
        return x.reshape(rows, pieces, band, *x.shape[2:])

    def around(x, empty):
        """[B, pieces, 3 * band, ...]: every piece between the one before and the one behind it."""
        x = jnp.pad(pieced(x), ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 1)), constant_values=empty)
        return jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=2)

    visible = pieced(until)[..., :, None] == around(until, -1)[..., None, :]

    def merged(x):
        return x.reshape(rows * pieces, *x.shape[2:])

    out = softmax_attend(merged(pieced(q)), merged(around(k, 0)), merged(around(v, 0)), merged(visible))
    return out.reshape(rows, length, heads, dim)
