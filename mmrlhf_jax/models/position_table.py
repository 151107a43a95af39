"""A tower's square table of learnt positions, of which a patch's position is a weighted sum of four rows."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.parameters import used
from mmrlhf_jax.sharding.rules import constrain, partitioned


class PositionTable(nnx.Module):
    """`side` x `side` positions of `width` numbers, row by row. The host finds rows and weights (`grid_taps`)."""

    def __init__(self, side: int, width: int, *, dtype, param_dtype, rngs: nnx.Rngs):
        init = partitioned(nnx.initializers.normal(width**-0.5), None, "embed")
        self.positions = nnx.Embed(side**2, width, embedding_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, grid: Int[Array, "B U P 4"], weights: Float[Array, "B U P 4"], dtype) -> Float[Array, "B N E"]:
        """The positions of all patches, summed in float32, one tap at a time so that no array has four of them."""
        table = used(self.positions.embedding, dtype).astype(jnp.float32)
        grid, weights = (x.reshape(len(x), -1, 4) for x in (grid, weights))
        total = sum(weights[..., tap, None] * table[grid[..., tap]] for tap in range(4))
        return constrain(total.astype(dtype), "batch", "slots", None)
