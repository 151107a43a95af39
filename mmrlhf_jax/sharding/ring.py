"""Gathering a large parameter inside a `shard_map`, its gradient reduced into the pieces by a ring of our own.

XLA may take a reduce-scatter that it is given for an all-reduce and a slice (libtpu does for v5p): twice the bytes, and the
whole sum on every device.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RING = "ring_reduce_scatter"  # in the names of its operations, where a plan looks for it


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_rows(piece: Float[Array, "r c"], axes: tuple[str, ...]) -> Float[Array, "n*r c"]:
    """The rows of all devices of the (manual) mesh axes, one piece after the other."""
    return jax.lax.all_gather(piece, axes, axis=0, tiled=True)


def _forward(piece, axes):
    return gather_rows(piece, axes), None


def _backward(axes, _, cotangent):
    return (reduce_scatter_rows(cotangent, axes),)


gather_rows.defvjp(_forward, _backward)


def reduce_scatter_rows(whole: Float[Array, "n*r c"], axes: tuple[str, ...]) -> Float[Array, "r c"]:
    """This device's rows of the sum over all devices of the axes. The sum travels and grows in float32."""
    count = jax.lax.axis_size(axes)
    here = jax.lax.axis_index(axes)
    rows = whole.shape[0] // count

    def piece(number):
        return jax.lax.dynamic_slice_in_dim(whole, number % count * rows, rows).astype(jnp.float32)

    def step(i, total):
        # What arrives is the sum, so far, of the piece that is i + 1 behind this device's own.
        total = jax.lax.ppermute(total, axes, [(d, (d + 1) % count) for d in range(count)])
        return total + piece(here - 1 - i)

    with jax.named_scope(RING):
        total = jax.lax.fori_loop(1, count, step, piece(here - 1))
    return total.astype(whole.dtype)
