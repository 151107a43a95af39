"""Attention whose keys are stored in several places: each part is computed apart, and their sum is exact.

Softmax over the union of two sets of keys is the sum of both parts, weighted by their shares of the normaliser (Hydragen, arXiv
2402.05099). Here the branches of a tree share the keys of their trunk, which are read once for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrlhf_jax.models.attention.xla import NEVER


class Part(NamedTuple):
    """Attention over some of the keys, before the division by the sum of weights. All in float32."""

    out: Float[Array, "... H D"]  # values, summed with weights exp(score - top)
    top: Float[Array, "... H"]  # the largest score
    total: Float[Array, "... H"]  # the sum of the weights


def attend_part(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K D S"],
    v: Float[Array, "B K S D"],
    visible: Bool[Array, "B Q S"],
) -> Part:
    """Every query against the keys that it sees; of a query that sees none, the weight in `join` is 0.

    Keys that a query does not see have no part in its result, also if they are NaN. Their values must be finite.
    """
    batch, queries, heads, dim = q.shape
    groups = heads // k.shape[1]
    q = (q * jnp.asarray(dim**-0.5, q.dtype)).reshape(batch, queries, k.shape[1], groups, dim).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bkgqd,bkds->bkgqs", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores, NEVER)
    top = scores.max(axis=-1)
    weights = jnp.exp(scores - top[..., None])
    out = jnp.einsum("bkgqs,bksd->bkgqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return Part(
        out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, dim),
        top.transpose(0, 3, 1, 2).reshape(batch, queries, heads),
        weights.sum(axis=-1).transpose(0, 3, 1, 2).reshape(batch, queries, heads),
    )


def merged(first: Part, second: Part) -> Part:
    """The part that has the keys of both. Keys that a query does not see leave its part as it is, bit for bit."""
    top = jnp.maximum(first.top, second.top)
    a, b = jnp.exp(first.top - top), jnp.exp(second.top - top)
    return Part(a[..., None] * first.out + b[..., None] * second.out, top, a * first.total + b * second.total)


def attended(part: Part) -> Float[Array, "... H D"]:
    """Attention over a part's keys, in float32."""
    return part.out / part.total[..., None]


def join(first: Part, second: Part) -> Float[Array, "... H D"]:
    """Attention over the keys of both parts, in float32."""
    return attended(merged(first, second))
