"""Attention with one mask for packing, prefix sharing and trees: `visible_until`.

    query q attends to key k   <=>   k <= q < visible_until[k]

A trunk key is visible until its group ends, a branch key until its branch ends, a padding key only to itself
(`visible_until[k] = k + 1`). For a plain causal sequence of length n, `visible_until` is n everywhere. Every query attends to
itself, because `visible_until[k] > k`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.attention.backends import Backend, attend, attend_segments, attend_windows
from mmrlhf_jax.models.attention.banded import banded_attention
from mmrlhf_jax.models.attention.parts import Part, attend_part, attended, join, merged

__all__ = [
    "Backend",
    "Part",
    "attend_part",
    "attended",
    "attention",
    "banded_attention",
    "full_attention",
    "join",
    "merged",
    "segment_attention",
    "window_attention",
]


def attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    *,
    backend: Backend = "auto",
) -> Float[Array, "B S H D"]:
    """Grouped-query attention (H is a multiple of K) with the mask `visible_until`. Softmax in float32; result in q's dtype."""
    return attend(q, k, v, visible_until, causal=True, backend=backend)


def full_attention(
    q: Float[Array, "B S H D"], k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], *, backend: Backend = "auto"
) -> Float[Array, "B S H D"]:
    """Attention without a mask: every query attends to every key of its row, as in an image."""
    everything = jnp.full(q.shape[:2], jnp.iinfo(jnp.int32).max, jnp.int32)
    return attend(q, k, v, everything, causal=False, backend=backend)


def segment_attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    until: Int[Array, "B S"],
    *,
    backend: Backend = "auto",
) -> Float[Array, "B S H D"]:
    """Attention inside segments of consecutive slots, as in the frames of images: every query attends to all keys of its own
    segment, whose end is `until`."""
    return attend_segments(q, k, v, until, backend=backend)


def window_attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S H D"],
    v: Float[Array, "B S H D"],
    until: Int[Array, "B S"],
    band: int,
    *,
    backend: Backend = "auto",
) -> Float[Array, "B S H D"]:
    """`segment_attention` for segments of at most `band` slots; `band` divides S."""
    return attend_windows(q, k, v, until, band, backend=backend)
