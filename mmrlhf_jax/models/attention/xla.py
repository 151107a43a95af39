"""Attention as plain XLA operations, on any platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Rows of up to DENSE_LIMIT slots are computed in one piece. Longer rows are computed query block by query block, each against
# the keys up to its own end, so that no [S, S] score matrix exists and most of the half above the diagonal is not computed.
# From REMAT_LIMIT on, a block's scores are recomputed in the backward pass, so that only one block's scores are live at a time.
DENSE_LIMIT = 256
REMAT_LIMIT = 1024
QUERY_BLOCKS = (128, 512)  # smallest and largest; about a quarter of the row in between

# Added to the score of a masked key: its exp is exactly 0, and its sum with any score is finite.
NEVER = -1e30


def attend(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    *,
    causal: bool = True,
) -> Float[Array, "B S H D"]:
    """Attention with the mask `visible_until`; without `causal`, later keys are visible as well."""
    length = q.shape[1]
    if length <= DENSE_LIMIT:
        return _attend_block(q, k, v, visible_until, 0, causal)
    size = min(max(length // 4, QUERY_BLOCKS[0]), QUERY_BLOCKS[1])
    block = _attend_block if length < REMAT_LIMIT else jax.checkpoint(_attend_block, static_argnums=(4, 5))
    # Cast to float32 here and back inside the blocks, so that the gradients of a key from several blocks are summed in float32.
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    outs = []
    for start in range(0, length, size):
        end = min(start + size, length)
        keys = end if causal else length
        outs.append(block(q[:, start:end], k[:, :keys], v[:, :keys], visible_until[:, :keys], start, causal))
    return jnp.concatenate(outs, axis=1)


def attend_segments(
    q: Float[Array, "B S H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], until: Int[Array, "B S"]
) -> Float[Array, "B S H D"]:
    """Every query attends to all keys of its own segment, whose end is `until`; a segment is consecutive slots.

    All blocks of queries are one loop: a tower's rows can be a hundred blocks long, and every block sees the whole row.
    """
    length = q.shape[1]
    size = segment_block(length)
    if size == length:
        return _attend_same(q, k, v, until, until)
    block = _attend_same if length < REMAT_LIMIT else jax.checkpoint(_attend_same)
    wide = k.astype(jnp.float32), v.astype(jnp.float32)  # as above

    def blocks(x):
        """[blocks, B, size, ...]; no segment has the end of what is padded at the end, which is 0."""
        x = jnp.pad(x, ((0, 0), (0, -length % size), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(len(x), -1, size, *x.shape[2:]).swapaxes(0, 1)

    outs = jax.lax.map(lambda part: block(part[0], *wide, part[1], until), (blocks(q), blocks(until)))
    return outs.swapaxes(0, 1).reshape(len(q), -1, *q.shape[2:])[:, :length]


def segment_block(length: int) -> int:
    """The queries of a block of `attend_segments` in rows of `length` slots; blocks are whole ones."""
    return length if length <= DENSE_LIMIT else min(max(length // 4, QUERY_BLOCKS[0]), QUERY_BLOCKS[1])


def _attend_same(q, k, v, queries, keys):
    """Queries against the keys whose segment has the same end."""
    return softmax_attend(q, k.astype(q.dtype), v.astype(q.dtype), queries[:, :, None] == keys[:, None, :])


def _attend_block(q, k, v, visible_until, start: int, causal: bool):
    """Queries start, ..., start + Q - 1 against keys 0, ..., K - 1."""
    queries = start + jnp.arange(q.shape[1])
    keys = jnp.arange(k.shape[1])
    visible = queries[None, :, None] < visible_until[:, None, :]
    if causal:
        visible &= keys[None, None, :] <= queries[None, :, None]
    return softmax_attend(q, k.astype(q.dtype), v.astype(q.dtype), visible)


def softmax_attend(q, k, v, visible: Bool[Array, "B Q S"]):
    """Softmax in float32. It is normalised after the values are summed, which saves a pass over the score matrix."""
    batch, queries, heads, dim = q.shape
    groups = heads // k.shape[2]
    q = (q * jnp.asarray(dim**-0.5, q.dtype)).reshape(batch, queries, k.shape[2], groups, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    bias = jnp.where(visible, 0.0, NEVER)[:, None, None]
    scores = jnp.einsum("bkgqd,bksd->bkgqs", q, k, preferred_element_type=jnp.float32) + bias
    # The shift by the maximum cancels in the quotient, so it needs no gradient.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bkgqs,bksd->bkgqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / weights.sum(axis=-1)[..., None]
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, dim).astype(v.dtype)
