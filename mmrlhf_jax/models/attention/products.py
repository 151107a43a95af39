"""Matrix products inside of kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NN = (((1,), (0,)), ((), ()))  # [m, c] [c, n]
NT = (((1,), (1,)), ((), ()))  # [m, c] [n, c]


def dot(a, b, dimensions):
    """A product accumulated in float32. Float32 inputs are multiplied in float32, not in the fewer bits of a matrix unit."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
