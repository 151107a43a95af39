"""The learnt token that some towers of patches put before every frame, and the norm before their first layer."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.layers import NORMS
from mmrlhf_jax.models.parameters import used, vector


class ClassToken(nnx.Module):
    """A token of `width` numbers, with an angle for each of a head's `pairs` of dimensions, and the norm of all patches. It is
    the last of the `block` patches of a block whose place is negative (`class_blocks`)."""

    def __init__(self, *, width: int, pairs: int, block: int, norm: str, eps: float, dtype, param_dtype, rngs: nnx.Rngs):
        self.embedding = vector(nnx.initializers.normal(width**-0.5)(rngs.params(), (width,), param_dtype))
        self.angles = vector(nnx.initializers.normal(1.0)(rngs.params(), (pairs,), param_dtype))
        self.norm = NORMS[norm](width, eps, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.block = block

    def __call__(self, places: Int[Array, "B U 2"], x: Float[Array, "B N E"], turned: Float[Array, "B N 1 D/2"], frames):
        """(the normed input of the layers, the angles, the ends of the frames): with the token and its angles in its place, and
        with the other patches of its block as frames of their own."""
        there = jnp.repeat(places[..., 0] < 0, self.block, axis=1)
        number = jnp.arange(x.shape[1], dtype=frames.dtype)
        is_class = there & (number % self.block == self.block - 1)
        x = jnp.where(is_class[..., None], used(self.embedding, x.dtype).astype(x.dtype), x)
        own = used(self.angles, x.dtype).astype(turned.dtype)
        turned = jnp.where(is_class[..., None, None], own, turned)
        return self.norm(x), turned, jnp.where(there & ~is_class, number + 1, frames)
