"""All-gather of a large parameter inside a `shard_map`, whose gradient is reduce-scattered by an explicit ring.

XLA may lower a reduce-scatter to an all-reduce and a slice (libtpu does for v5p), which moves twice the bytes and needs memory
for the whole sum on every device.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mmrlhf_jax.sharding import rules

RING = "ring_reduce_scatter"  # name scope of the ring's operations, by which a plan finds them in the HLO


def multiply(x: Float[Array, "B ... i"], kernel: Float[Array, "i o"], axes: tuple[str | None, ...]) -> Float[Array, "B ... o"]:
    """`x @ kernel` for a kernel with these logical axes, whose rows are sharded; x is sharded over the batch axes only."""
    mesh = rules.current_mesh()
    if mesh is None:
        return x @ kernel
    rows = rules.fit(rules.spec("batch"), x.shape, mesh)
    stored = PartitionSpec(rules.fit_stored(axes, kernel.shape, mesh)[0])
    sharded = tuple(axis for axis in rules.axes_in(stored[0]) if mesh.shape[axis] > 1)

    def local(x, kernel):
        return x @ (gather_rows(kernel, sharded) if sharded else kernel)

    manual = set(rules.MESH_AXES) - {"tensor"}
    return jax.shard_map(local, mesh=mesh, in_specs=(rows, stored), out_specs=rows, axis_names=manual, check_vma=False)(
        x, kernel
    )


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_rows(piece: Float[Array, "r c"], axes: tuple[str, ...]) -> Float[Array, "n*r c"]:
    """All-gather `piece` over the (manual) mesh axes, shards concatenated along the rows. Its gradient is
    `reduce_scatter_rows`."""
    return jax.lax.all_gather(piece, axes, axis=0, tiled=True)


def _forward(piece, axes):
    return gather_rows(piece, axes), None


def _backward(axes, _, cotangent):
    return (reduce_scatter_rows(cotangent, axes),)


gather_rows.defvjp(_forward, _backward)


def reduce_scatter_rows(whole: Float[Array, "n*r c"], axes: tuple[str, ...]) -> Float[Array, "r c"]:
    """This device's rows of the sum of `whole` over all devices of the mesh axes, accumulated and sent in float32."""
    count = jax.lax.axis_size(axes)
    here = jax.lax.axis_index(axes)
    rows = whole.shape[0] // count

    def piece(number):
        return jax.lax.dynamic_slice_in_dim(whole, number % count * rows, rows).astype(jnp.float32)

    def step(i, total):
        # Receives the partial sum of the shard that is i + 1 behind this device's own.
        total = jax.lax.ppermute(total, axes, [(d, (d + 1) % count) for d in range(count)])
        return total + piece(here - 1 - i)

    with jax.named_scope(RING):
        total = jax.lax.fori_loop(1, count, step, piece(here - 1))
    return total.astype(whole.dtype)
