"""The three kernels of attention on GPU, each for one outer block: of queries, or of keys.

A program reads the list of its inner blocks (`visibility.BlockLists`) and visits first those without a masked pair, then those
with one, so it computes a mask only where one is needed. Sums stay in registers over all inner blocks and are written once; no
two programs write to the same place, so results do not depend on the order in which programs run.

Arrays are as the model has them: queries [S, H, D], keys and values [S, K, D] of a row, of which a program sees one head (the
gradient of keys, all query heads of one key/value head). The functions' names are those of the kernels in a compiled program.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mmrlhf_jax.models.attention import tiles_gpu as tiles

NEVER = -1e30  # the score of a masked pair: its exp is exactly 0, and differences of such scores are finite
LOG2E = math.log2(math.e)  # exp(x) = 2^(x log2 e), and powers of two are what the hardware computes


class Shape(NamedTuple):
    """The static sizes that a kernel is specialised for. `queries` and `keys` are slots of a block."""

    length: int
    dim: int
    group: int
    queries: int
    keys: int
    causal: bool
    segments: bool = False  # behind the row's `until` follows the slot from which on queries see each key

    @property
    def scale(self) -> float:
        return self.dim**-0.5


def attention_forward(shape: Shape, inner, counts, until, q, k, v, out, lse):
    """The output of one block of queries, and the log-sum-exp of their scores."""
    start = _last_first() * shape.queries
    slots = pl.ds(start, shape.queries)
    queries = tiles.load(q, slots, None, shape.length, shape.dim)
    factor = shape.scale * LOG2E

    def visit(block, carry, masked):
        top, total, acc = carry
        key_slots = pl.ds(block * shape.keys, shape.keys)
        scores = tiles.scores(queries, tiles.load(k, key_slots, None, shape.length, shape.dim))
        if masked:
            scores = jnp.where(_visible(shape, start, key_slots, until, keys_down=False), scores, NEVER)
        now = jnp.maximum(top, scores.max(axis=1))
        # Where all scores so far are NEVER, the two products below need not cancel: one of them is rounded, the other fused.
        shift = jnp.where(now == NEVER, 0.0, now * factor) if masked else now * factor
        weights = jnp.exp2(scores * factor - shift[:, None])
        shrink = jnp.exp2((top - now) * factor)
        total = shrink * total + weights.sum(axis=1)
        values = tiles.load(v, key_slots, None, shape.length, shape.dim)
        return now, total, tiles.add_product(tiles.scaled(acc, shrink[:, None]), weights, values)

    first = jnp.full(shape.queries, NEVER, jnp.float32), jnp.zeros(shape.queries, jnp.float32)
    top, total, acc = _over(inner, counts, visit, (*first, tiles.zeros(shape.queries, shape.dim)))
    tiles.store(out, slots, tiles.scaled(acc, (1 / total)[:, None]), shape.length, shape.dim)
    plgpu.store(lse.at[slots], top * shape.scale + jnp.log(total), mask=_inside(shape, slots))


def attention_queries_gradient(shape: Shape, inner, counts, until, q, k, v, cotangent, lse, delta, dq):
    """The gradient of one block of queries."""
    start = _last_first() * shape.queries
    slots = pl.ds(start, shape.queries)
    queries, cotangents = (tiles.load(x, slots, None, shape.length, shape.dim) for x in (q, cotangent))
    lse, delta = (_statistic(shape, x.at[slots], slots)[:, None] for x in (lse, delta))

    def visit(block, acc, masked):
        key_slots = pl.ds(block * shape.keys, shape.keys)
        keys = tiles.load(k, key_slots, None, shape.length, shape.dim)
        scores = tiles.scores(queries, keys)
        if masked:
            scores = jnp.where(_visible(shape, start, key_slots, until, keys_down=False), scores, NEVER)
        weights = jnp.exp2(scores * (shape.scale * LOG2E) - lse * LOG2E)
        values = tiles.load(v, key_slots, None, shape.length, shape.dim)
        return tiles.add_product(acc, weights * (tiles.scores(cotangents, values) - delta), keys)

    acc = _over(inner, counts, visit, tiles.zeros(shape.queries, shape.dim))
    tiles.store(dq, slots, tiles.scaled(acc, shape.scale), shape.length, shape.dim)


def attention_keys_gradient(shape: Shape, inner, counts, until, q, k, v, cotangent, lse, delta, dk, dv):
    """The gradients of one block of keys and values, summed over the query heads that share them. Scores are [keys, queries],
    so that the products with them need no transposition."""
    slots = pl.ds(pl.program_id(1) * shape.keys, shape.keys)
    keys, values = (tiles.load(x, slots, None, shape.length, shape.dim) for x in (k, v))

    def head(g, sums):
        def visit(block, carry, masked):
            dk, dv = carry
            start = block * shape.queries
            query_slots = pl.ds(start, shape.queries)
            queries = tiles.load(q, query_slots, g, shape.length, shape.dim)
            scores = tiles.scores(keys, queries)
            if masked:
                scores = jnp.where(_visible(shape, start, slots, until, keys_down=True), scores, NEVER)
            lses = _statistic(shape, lse.at[g, query_slots], query_slots)[None, :]
            weights = jnp.exp2(scores * (shape.scale * LOG2E) - lses * LOG2E)
            cotangents = tiles.load(cotangent, query_slots, g, shape.length, shape.dim)
            dv = tiles.add_product(dv, weights, cotangents)
            deltas = _statistic(shape, delta.at[g, query_slots], query_slots)[None, :]
            return tiles.add_product(dk, weights * (tiles.scores(values, cotangents) - deltas), queries), dv

        return _over(inner, counts, visit, sums)

    sums = tiles.zeros(shape.keys, shape.dim), tiles.zeros(shape.keys, shape.dim)
    sums = jax.lax.fori_loop(0, shape.group, head, sums)
    tiles.store(dk, slots, tiles.scaled(sums[0], shape.scale), shape.length, shape.dim)
    tiles.store(dv, slots, sums[1], shape.length, shape.dim)


def _last_first():
    """The block of queries of this program. Later blocks see more keys, so they start first and leave no long end."""
    return pl.num_programs(1) - 1 - pl.program_id(1)


def _over(inner, counts, visit, carry):
    """Visit the inner blocks of a list: `visit(block, carry, masked)`. The next block's number is read during a visit, so that
    its tiles can be fetched without waiting for it."""
    whole, visible = counts[0], counts[1]

    def step(i, state, masked):
        block, carry = state
        return inner[jnp.minimum(i + 1, visible - 1)], visit(block, carry, masked)

    state = jax.lax.fori_loop(0, whole, lambda i, state: step(i, state, False), (inner[0], carry))
    return jax.lax.fori_loop(whole, visible, lambda i, state: step(i, state, True), state)[1]


def _visible(shape: Shape, first_query, key_slots, until, *, keys_down: bool):
    """bool[queries, keys] of a block, or bool[keys, queries] with `keys_down`. No query beyond the row's length sees a key,
    because `until` is at most the length."""
    queries = first_query + jnp.arange(shape.queries)
    keys = key_slots.start + jnp.arange(shape.keys)
    behind = until.shape[0] // 2
    since = plgpu.load(until.at[pl.ds(behind + key_slots.start, shape.keys)]) if shape.segments else None
    until = plgpu.load(until.at[key_slots])
    across = (lambda x: x[None, :]), (lambda x: x[:, None])
    query, key = across if keys_down else reversed(across)
    visible = query(queries) < key(until)
    if shape.segments:
        visible &= query(queries) >= key(since)
    return visible & (key(keys) <= query(queries)) if shape.causal else visible


def _statistic(shape: Shape, ref, slots):
    """A number per query, 0 beyond the row's length."""
    mask = _inside(shape, slots)
    return plgpu.load(ref, mask=mask, other=None if mask is None else 0.0)


def _inside(shape: Shape, slots):
    """bool[slots]: whether a slot is one of the row's; None if all blocks of this size are."""
    return slots.start + jnp.arange(slots.size) < shape.length if shape.length % slots.size else None
