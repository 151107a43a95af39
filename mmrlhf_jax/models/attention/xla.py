"""Attention as plain XLA operations, on any platform: query block by query block, each against the keys up to its own end.

No [S, S] score matrix of a head exists and most of the half above the diagonal is not computed. The backward pass makes
a block's softmax again from the logarithm of its sum, as the kernels do, so that only one block's scores are ever live.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Rows up to DENSE_LIMIT attend in one piece; longer ones in about four, no smaller and no larger than QUERY_BLOCKS.
DENSE_LIMIT = 256
QUERY_BLOCKS = (128, 512)

# Added to the score of a key that is not visible: exp of it is exactly 0, and its sum with any score is finite.
NEVER = -1e30


def forward(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    *,
    causal: bool = True,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B K G S"]]:
    """The attention and, for the backward pass, the logarithm of every query's sum of exponentials."""
    q, k, v = _grouped(_scaled(q), k), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    outs, sums = [], []
    for queries, keys in _blocks(q.shape[3], causal):
        bias = _bias(visible_until, queries, keys, causal)
        out, lse = _softmax_attend(q[:, :, :, queries], k[:, :, keys], v[:, :, keys], bias)
        outs.append(out.astype(v.dtype))
        sums.append(lse)
    return _ungrouped(jnp.concatenate(outs, axis=3)), jnp.concatenate(sums, axis=3)


def backward(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    out: Float[Array, "B S H D"],
    lse: Float[Array, "B K G S"],
    cotangent: Float[Array, "B S H D"],
    *,
    causal: bool = True,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B S K D"], Float[Array, "B S K D"]]:
    """Gradients of q, k and v."""
    scale = q.shape[-1] ** -0.5
    # The softmax's derivative needs sum_k p dp, which is sum_d out * cotangent.
    delta = (out.astype(jnp.float32) * cotangent.astype(jnp.float32)).sum(axis=-1).transpose(0, 2, 1).reshape(lse.shape)
    q, cotangent = _grouped(_scaled(q), k), _grouped(cotangent, k)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    dqs, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for queries, keys in _blocks(q.shape[3], causal):
        bias = _bias(visible_until, queries, keys, causal)
        q_block, c_block, k_block, v_block = q[:, :, :, queries], cotangent[:, :, :, queries], k[:, :, keys], v[:, :, keys]
        weights = jnp.exp(_product("bkgqd,bksd->bkgqs", q_block, k_block) + bias - lse[:, :, :, queries, None])
        gradient = weights * (_product("bkgqd,bksd->bkgqs", c_block, v_block) - delta[:, :, :, queries, None])
        dv = dv.at[:, :, keys].add(_product("bkgqs,bkgqd->bksd", weights.astype(v.dtype), c_block))
        gradient = gradient.astype(k.dtype)
        dk = dk.at[:, :, keys].add(_product("bkgqs,bkgqd->bksd", gradient, q_block))
        dqs.append((_product("bkgqs,bksd->bkgqd", gradient, k_block) * scale).astype(q.dtype))
    return _ungrouped(jnp.concatenate(dqs, axis=3)), *(x.transpose(0, 2, 1, 3).astype(k.dtype) for x in (dk, dv))


def attend_cache(
    q: Float[Array, "B 1 H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    valid: Bool[Array, "B S"],
) -> Float[Array, "B 1 H D"]:
    """One new query per sequence against a KV cache; `valid` marks the cache slots that it sees."""
    bias = jnp.where(valid, 0.0, NEVER)[:, None, None, None]
    out, _ = _softmax_attend(_grouped(_scaled(q), k), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), bias)
    return _ungrouped(out.astype(v.dtype))


def _softmax_attend(q: Float[Array, "B K G Q D"], k, v, bias) -> tuple[Float[Array, "B K G Q D"], Float[Array, "B K G Q"]]:
    """Softmax in float32 with the division after the values are summed: one pass less over the score matrix."""
    scores = _product("bkgqd,bksd->bkgqs", q, k) + bias
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1)
    out = _product("bkgqs,bksd->bkgqd", weights.astype(v.dtype), v) / total[..., None]
    return out, top[..., 0] + jnp.log(total)


def _blocks(length: int, causal: bool) -> list[tuple[slice, slice]]:
    """Slices of the queries, each with the keys that any of them may see."""
    size = length if length <= DENSE_LIMIT else min(max(length // 4, QUERY_BLOCKS[0]), QUERY_BLOCKS[1])
    ends = [min(start + size, length) for start in range(0, length, size)]
    return [(slice(start, end), slice(0, end if causal else length)) for start, end in zip([0, *ends], ends, strict=False)]


def _bias(visible_until, queries: slice, keys: slice, causal: bool) -> Float[Array, "B 1 1 Q S"]:
    slots = jnp.arange(visible_until.shape[1])
    visible = slots[None, queries, None] < visible_until[:, None, keys]
    if causal:
        visible &= slots[keys] <= slots[queries, None]
    return jnp.where(visible, 0.0, NEVER)[:, None, None]


def _product(equation: str, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _scaled(q):
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _grouped(q: Float[Array, "B S H D"], k) -> Float[Array, "B K G S D"]:
    batch, length, heads, dim = q.shape
    return q.reshape(batch, length, k.shape[2], heads // k.shape[2], dim).transpose(0, 2, 3, 1, 4)


def _ungrouped(x: Float[Array, "B K G S D"]) -> Float[Array, "B S H D"]:
    batch, kv_heads, group, length, dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, dim)
