"""Gathering a large parameter inside a `shard_map`, its gradient reduced into the pieces by a ring of our own.

XLA may take a reduce-scatter that it is given for an all-reduce and a slice (libtpu does for v5p): twice the bytes, and the
whole sum on every device.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mmrlhf_jax.sharding import rules

RING = "ring_reduce_scatter"  # in the names of its operations, where a plan looks for it


def multiply(x: Float[Array, "B ... i"], kernel: Float[Array, "i o"], axes: tuple[str | None, ...]) -> Float[Array, "B ... o"]:
    """`x @ kernel` for a kernel of these logical axes, stored in pieces of its rows; x is split over the batch axes alone."""
    mesh = rules.current_mesh()
    if mesh is None:
        return x @ kernel
    rows = rules.fit(rules.spec("batch"), x.shape, mesh)
    stored = PartitionSpec(rules.fit_stored(axes, kernel.shape, mesh)[0])

    def local(x, kernel):
        return x @ (gather_rows(kernel, rules.axes_in(stored[0])) if stored[0] else kernel)

    manual = set(rules.MESH_AXES) - {"tensor"}
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, stored), out_specs=rows, axis_names=manual, check_vma=False)(
        x, kernel
    )


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
