"""Use of parameters: they are cast to the compute dtype for each operation, and their gradients are summed in float32.

A gradient is a sum over tokens, accumulation pieces and devices. In bfloat16 such a sum no longer changes once it is 256 times
as large as the terms, so the cast to float32 must come before the sum. Cotangents of activations stay in the compute dtype.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from mmrlhf_jax.sharding import rules


def rounded(value: jax.Array, dtype) -> jax.Array:
    """`value` rounded to the precision of `dtype`, but in its own dtype. Its gradient is not rounded."""
    return value if dtype is None or value.dtype == dtype else _rounded(value, np.dtype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rounded(value, dtype):
    return value.astype(dtype).astype(value.dtype)


_rounded.defvjp(lambda value, dtype: (_rounded(value, dtype), None), lambda dtype, _, cotangent: (cotangent,))


# Metadata of a parameter that is a vector: a bias, a scale, or a single learnt embedding. The optimizer does not decay it.
VECTOR = {"vector": True}


def vector(value: jax.Array) -> nnx.Param:
    """A parameter that is a vector, whatever its shape, and so does not decay."""
    return nnx.Param(value, **VECTOR)


def is_vector(param: nnx.Variable) -> bool:
    """Whether the parameter was made as a vector."""
    return param.get_metadata().get("vector", False)


def used(param: nnx.Param, dtype) -> jax.Array:
    """A parameter, `rounded` and gathered over the storage axes, for operations other than matrix products (biases,
    positions)."""
    value, axes = rounded(param[...], dtype), _axes(param)
    return value if axes is None else rules.gather(value, axes)


def for_norm(values, *, dtype, **_) -> tuple[jax.Array | None, ...]:
    """The `promote_dtype` function of flax's norms: casts the input to `dtype`, and `rounded` scale and bias."""
    x, *params = values
    return (x.astype(dtype), *(None if param is None else rounded(param, dtype) for param in params))


class _How(NamedTuple):
    """Static settings of a product: the kernel's logical axes and dtype, the dtype in which its gradient is summed, and the
    matmul precision."""

    axes: tuple[str | None, ...] | None
    kernel: np.dtype
    sums: np.dtype
    precision: str | None


def product(x: Float[Array, "... I"], param: nnx.Param, sums=jnp.float32) -> Float[Array, "... O"]:
    """x @ kernel, in the dtype of x. The kernel is cast before it is all-gathered, which in bfloat16 halves the bytes to move.

    The kernel's gradient is summed over tokens and devices in the dtype `sums`, or in x's dtype if that is wider.
    """
    kernel = param[...]
    sums = np.dtype(jnp.promote_types(sums, x.dtype))
    return _product(x, kernel, _How(_axes(param), np.dtype(kernel.dtype), sums, jax.config.jax_default_matmul_precision))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel, how: _How):
    return jnp.matmul(x, _whole(kernel, x.dtype, how), precision=how.precision)


def _product_forward(x, kernel, how):
    """Saves only the residuals that the required gradients need: for a frozen kernel, x is not saved."""
    whole = _whole(kernel.value, x.value.dtype, how)
    kept = (x.value if kernel.perturbed else None, whole if x.perturbed else None)
    return jnp.matmul(x.value, whole, precision=how.precision), kept


def _product_backward(how, kept, cotangent):
    x, whole = kept
    if type(cotangent) is SymbolicZero:
        return None, None
    back = forth = None
    if whole is not None:
        back = jax.lax.dot_general(cotangent, whole, (((cotangent.ndim - 1,), (1,)), ((), ())), precision=how.precision)
    if x is not None:
        tokens = tuple(range(x.ndim - 1))
        summed = (((tokens, tokens), ((), ())), how.precision, how.sums)
        forth = jax.lax.dot_general(x, cotangent, *summed)
        forth = (forth if how.axes is None else rules.scatter(forth, how.axes)).astype(how.kernel)
    return back, forth


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def look_up(param: nnx.Param, tokens: Int[Array, "B S"], dtype) -> Float[Array, "B S E"]:
    """Look up tokens in an embedding [V, E] with the logical axes (vocab, embed); the result has the dtype `dtype`."""
    return _look_up(param[...], tokens, np.dtype(dtype), param.shape, np.dtype(param[...].dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _look_up(table, tokens, dtype, shape, stored):
    # The table is sharded by column over fsdp; tokens are gathered, results go back to row shards.
    table = rules.constrain(table.astype(dtype), "vocab", "columns")
    found = rules.constrain(jnp.take(table, _near(tokens), axis=0), "replica", "slots", "columns")
    return rules.constrain(found, "batch", "slots", None)


def _look_up_forward(table, tokens, dtype, shape, stored):
    return _look_up(table, tokens, dtype, shape, stored), tokens


def _look_up_backward(dtype, shape, stored, tokens, cotangent):
    cotangent = rules.constrain(rules.constrain(cotangent, "batch", "slots", None), "replica", "slots", "columns")
    nothing = rules.constrain(jnp.zeros(shape, jnp.float32), "vocab", "columns")
    total = nothing.at[_near(tokens)].add(cotangent.astype(jnp.float32))
    return rules.constrain(total, "vocab", "columns").astype(stored), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def _near(tokens):
    return rules.constrain(rules.constrain(tokens, "replica", None), "replica", "slots")


def _axes(param: nnx.Param) -> tuple[str | None, ...] | None:
    axes = param.get_metadata().get("out_sharding")
    return None if axes is None else tuple(axes)


def _whole(kernel, dtype, how: _How):
    kernel = kernel.astype(dtype)
    return kernel if how.axes is None else rules.gather(kernel, how.axes)
