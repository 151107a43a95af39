"""The three kernels of attention on TPU, each for one block of queries and one block of keys.

Each is called for every entry of a work list (`visibility.py`), outer block by outer block, and handles all query heads that
share a key/value head: queries [G, block, D], keys and values [block, D], row statistics [G, block], the keys' `visible_until`
[1, block]. The arithmetic follows jax's `splash_attention`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mmrlhf_jax.models.attention.products import NN, NT, dot
from mmrlhf_jax.models.attention.visibility import FIRST, LAST, WHOLE

LANES = 128  # lanes of a vector register; scalars per query are stored repeated over all lanes
NEVER = -1e30  # added to the score of a masked pair: its exp is exactly 0, and differences of such scores are finite


class Shape(NamedTuple):
    """The static sizes that the kernels are specialised for."""

    rows: int
    kv_heads: int
    group: int
    length: int
    dim: int
    block: int
    causal: bool
    segments: bool = False  # `until` has a second row: the slot from which on queries see the key

    @property
    def blocks(self) -> int:
        return self.length // self.block


def forward_kernel(shape, outer, inner, flags, until, q, k, v, out, lse, top, total, acc):
    """Adds one key block to the output of one query block, with the softmax's running maximum `top` and sum `total`."""
    step = pl.program_id(1)

    @pl.when(flags[step] & FIRST != 0)
    def _():
        top[...] = jnp.full_like(top, NEVER)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    def head(g, bias):
        scores = _scores(q[g], k[...], bias)
        before = top[g]
        now = jnp.maximum(before, scores.max(axis=1, keepdims=True))
        weights = jnp.exp(scores - _lanes(now, shape.block))
        shrink = jnp.exp(before - now)
        top[g] = now
        total[g] = shrink * total[g] + weights.sum(axis=1, keepdims=True)
        acc[g] = _lanes(shrink, shape.dim) * acc[g] + dot(weights.astype(v.dtype), v[...], NN)

    query_block, key_block = jax.lax.rem(outer[step], shape.blocks), inner[step]
    _visit(shape, flags[step], head, lambda: _bias(shape, query_block, key_block, until[...], keys_down=False))

    @pl.when(flags[step] & LAST != 0)
    def _():
        for g in range(shape.group):
            out[g] = (acc[g] / _lanes(total[g], shape.dim)).astype(out.dtype)
            lse[g : g + 1] = (top[g] + jnp.log(total[g])).T[:1]


def queries_gradient_kernel(shape, outer, inner, flags, until, q, k, v, cotangent, lse, delta, dq, lse_col, delta_col, acc):
    """Adds one key block to the gradient of one query block."""
    step = pl.program_id(1)

    @pl.when(flags[step] & FIRST != 0)
    def _():
        for g in range(shape.group):
            lse_col[g] = _column(lse[g : g + 1])
            delta_col[g] = _column(delta[g : g + 1])
        acc[...] = jnp.zeros_like(acc)

    def head(g, bias):
        scores = _scores(q[g], k[...], bias)
        weights = jnp.exp(scores - _lanes(lse_col[g], shape.block))
        gradient = weights * (dot(cotangent[g], v[...], NT) - _lanes(delta_col[g], shape.block))
        acc[g] += dot(gradient.astype(k.dtype), k[...], NN)

    query_block, key_block = jax.lax.rem(outer[step], shape.blocks), inner[step]
    _visit(shape, flags[step], head, lambda: _bias(shape, query_block, key_block, until[...], keys_down=False))

    @pl.when(flags[step] & LAST != 0)
    def _():
        dq[...] = (acc[...] * shape.dim**-0.5).astype(dq.dtype)


def keys_gradient_kernel(shape, outer, inner, flags, until, q, k, v, cotangent, lse, delta, dk, dv, dk_acc, dv_acc):
    """Adds one query block to the gradients of one key block. Scores are [keys, queries], so that the products with them need
    no transposition."""
    step = pl.program_id(1)

    @pl.when(flags[step] & FIRST != 0)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def head(g, bias):
        scores = _scores(k[...], q[g], bias)
        weights = jnp.exp(scores - lse[pl.ds(g, 1)])
        dv_acc[...] += dot(weights.astype(v.dtype), cotangent[g], NN)
        gradient = weights * (dot(v[...], cotangent[g], NT) - delta[pl.ds(g, 1)])
        dk_acc[...] += dot(gradient.astype(q.dtype), q[g], NN)

    query_block, key_block = inner[step], jax.lax.rem(outer[step], shape.blocks)
    _visit(shape, flags[step], head, lambda: _bias(shape, query_block, key_block, until[...], keys_down=True))

    @pl.when(flags[step] & LAST != 0)
    def _():
        dk[...] = dk_acc[...].astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _visit(shape: Shape, flags, head, bias):
    """Call `head(g, bias)` for every query head of the block. For blocks without masked pairs, which are most blocks of a long
    trunk, no mask is computed and `bias` is None."""

    def heads(bias):
        def one(g, nothing):
            head(g, bias)
            return nothing

        jax.lax.fori_loop(0, shape.group, one, 0)

    pl.when(flags & WHOLE != 0)(lambda: heads(None))
    pl.when(flags & WHOLE == 0)(lambda: heads(bias()))


def _bias(shape: Shape, query_block, key_block, until, *, keys_down: bool):
    """The mask as a bias: 0 or NEVER for every pair of the block. `until` is [1, block], or [2, block] for
    segments; with `keys_down` keys are the rows."""
    square = (shape.block, shape.block)
    queries = query_block * shape.block + jax.lax.broadcasted_iota(jnp.int32, square, 1 if keys_down else 0)
    if shape.segments:
        until, since = until[:1], until[1:]
    visible = queries < (_column(until)[:, :1] if keys_down else until)
    if shape.segments:
        visible &= queries >= (_column(since)[:, :1] if keys_down else since)
    if shape.causal:
        keys = key_block * shape.block + jax.lax.broadcasted_iota(jnp.int32, square, 0 if keys_down else 1)
        visible &= keys <= queries
    return jnp.where(visible, 0.0, NEVER)


def _scores(a, b, bias):
    scores = dot(a, b, NT)
    return scores if bias is None else scores + bias


def _column(row):
    """Transpose a row [1, n] into a column that is repeated over lanes, [n, LANES]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _lanes(x, width: int):
    """Widen a column that is repeated over lanes, [n, LANES], to [n, width]."""
    return jnp.tile(x, (1, -(-width // LANES)))[:, :width]
