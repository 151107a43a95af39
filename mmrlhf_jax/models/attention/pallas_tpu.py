"""Attention on TPU: flash-style Pallas kernels that visit only the blocks of `visibility.py`'s work lists.

The grid is (key/value head, step): its second size is the number of visible blocks, known on the device only, and the
list of them is prefetched into scalar memory, where it steers which blocks are copied next. A step handles all the
query heads that share the key/value head, so that keys, values and the mask are fetched and made once for them.

Layouts: queries [B, K, G, S, D] (G query heads per key/value head), keys and values [B, K, S, D], row statistics
[B, K, G, S]. `splash_attention` in jax is the model for the arithmetic; it cannot express trees without a mask of S x S.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.attention.visibility import FIRST, LAST, WHOLE, WorkList, block_kinds, by_key, by_query

LANES = 128  # of a vector register: scalars per query are kept repeated over them
NEVER = -1e30  # the score of a pair that is not visible: its exp is exactly 0, and differences of it are finite
BLOCKS = (512, 256, 128)
WHOLE_ROW = 1024
QUERIES_AT_ONCE = 4096  # block x query heads per key/value head, bounded by vector memory
VMEM_BYTES = 48 << 20

NN = (((1,), (0,)), ((), ()))  # [m, c] [c, n]
NT = (((1,), (1,)), ((), ()))  # [m, c] [n, c]


class Shape(NamedTuple):
    """What the kernels are specialised for, all static."""

    rows: int
    kv_heads: int
    group: int
    length: int
    dim: int
    block: int
    causal: bool

    @property
    def blocks(self) -> int:
        return self.length // self.block


def block_size(length: int, group: int, causal: bool) -> int:
    """The largest block that fits vector memory and adds at most an eighth of padding to a row.

    Without order there is nothing to skip, and a row as short as an image is one block.
    """
    if not causal and length <= WHOLE_ROW:
        return length + -length % LANES
    fitting = [b for b in BLOCKS if b * group <= QUERIES_AT_ONCE] or [BLOCKS[-1]]
    return next((b for b in fitting if 8 * (-length % b) <= length), fitting[-1])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    causal: bool,
    interpret: bool,
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
) -> Float[Array, "B S H D"]:
    """Attention under `visible_until`; without `causal`, later keys are visible too."""
    return _attend_forward(causal, interpret, q, k, v, visible_until)[0]


def _attend_forward(causal, interpret, q, k, v, visible_until):
    out, lse = forward(q, k, v, visible_until, causal=causal, interpret=interpret)
    return out, (q, k, v, visible_until, out, lse)


def _attend_backward(causal, interpret, kept, cotangent):
    return *backward(*kept, cotangent, causal=causal, interpret=interpret), None


attend.defvjp(_attend_forward, _attend_backward)


def forward(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    *,
    causal: bool,
    interpret: bool,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B K G S"]]:
    """The attention and, for the backward pass, the logarithm of every query's sum of exponentials."""
    length = q.shape[1]
    shape, q, k, v, until = _lay_out(q, k, v, visible_until, causal)
    work = by_query(block_kinds(until[:, 0], shape.block, causal=causal), causal=causal)
    heads = _queries(shape)
    out, lse = _call(
        partial(_forward_kernel, shape),
        shape,
        work,
        inputs=[(until, _visible_until(shape, "inner")), (q, heads), *((x, _keys(shape, "inner")) for x in (k, v))],
        outputs=[(_like(q), heads), (_statistics_like(shape), _statistics(shape))],
        scratch=[(shape.group, shape.block, LANES)] * 2 + [(shape.group, shape.block, shape.dim)],
        matmuls=2,
        interpret=interpret,
    )
    return _heads_last(out, length), lse[..., :length]


def backward(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    out: Float[Array, "B S H D"],
    lse: Float[Array, "B K G S"],
    cotangent: Float[Array, "B S H D"],
    *,
    causal: bool,
    interpret: bool,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B S K D"], Float[Array, "B S K D"]]:
    """Gradients of q, k and v: one kernel over the keys of every query block, one over the queries of every key block."""
    length = q.shape[1]
    # The softmax's derivative needs sum_k p dp, which is sum_d out * cotangent.
    delta = (out.astype(jnp.float32) * cotangent.astype(jnp.float32)).sum(axis=-1)
    delta = delta.transpose(0, 2, 1).reshape(lse.shape)
    shape, q, k, v, until = _lay_out(q, k, v, visible_until, causal)
    pad = shape.length - length
    lse, delta = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, pad))) for x in (lse, delta))
    cotangent = _heads_first(cotangent.astype(q.dtype), shape.kv_heads, pad)
    kinds = block_kinds(until[:, 0], shape.block, causal=causal)

    heads, statistics = _queries(shape), _statistics(shape)
    keys = _keys(shape, "inner")
    (dq,) = _call(
        partial(_queries_gradient_kernel, shape),
        shape,
        by_query(kinds, causal=causal),
        inputs=[
            (until, _visible_until(shape, "inner")),
            *[(q, heads), (k, keys), (v, keys), (cotangent, heads), (lse, statistics), (delta, statistics)],
        ],
        outputs=[(_like(q), heads)],
        scratch=[(shape.group, shape.block, LANES)] * 2 + [(shape.group, shape.block, shape.dim)],
        matmuls=3,
        interpret=interpret,
    )
    heads, statistics = _queries(shape, "inner"), _statistics(shape, "inner")
    keys = _keys(shape, "outer")
    dk, dv = _call(
        partial(_keys_gradient_kernel, shape),
        shape,
        by_key(kinds, causal=causal),
        inputs=[
            (until, _visible_until(shape, "outer")),
            *[(q, heads), (k, keys), (v, keys), (cotangent, heads), (lse, statistics), (delta, statistics)],
        ],
        outputs=[(_like(k), keys), (_like(v), keys)],
        scratch=[(shape.block, shape.dim)] * 2,
        matmuls=4,
        interpret=interpret,
    )
    dk, dv = (x[:, :, :length].transpose(0, 2, 1, 3) for x in (dk, dv))
    return _heads_last(dq, length), dk, dv


def _forward_kernel(shape, outer, inner, flags, until, q, k, v, out, lse, top, total, acc):
    """One block of queries against one of keys, under the running maximum `top` and sum `total` of the softmax."""
    step = pl.program_id(1)

    @pl.when(flags[step] & FIRST != 0)
    def _():
        top[...] = jnp.full_like(top, NEVER)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    def visit(bias):
        def head(g, _):
            scores = _dot(q[g], k[...], NT)
            if bias is not None:
                scores = scores + bias
            before = top[g]
            now = jnp.maximum(before, scores.max(axis=1, keepdims=True))
            weights = jnp.exp(scores - _lanes(now, shape.block))
            shrink = jnp.exp(before - now)
            top[g] = now
            total[g] = shrink * total[g] + weights.sum(axis=1, keepdims=True)
            acc[g] = _lanes(shrink, shape.dim) * acc[g] + _dot(weights.astype(v.dtype), v[...], NN)
            return 0

        jax.lax.fori_loop(0, shape.group, head, 0)

    query_block, key_block = jax.lax.rem(outer[step], shape.blocks), inner[step]
    _masked_or_not(flags[step], visit, lambda: _bias(shape, query_block, key_block, until[...], keys_down=False))

    @pl.when(flags[step] & LAST != 0)
    def _():
        for g in range(shape.group):
            out[g] = (acc[g] / _lanes(total[g], shape.dim)).astype(out.dtype)
            lse[g : g + 1] = (top[g] + jnp.log(total[g])).T[:1]


def _queries_gradient_kernel(shape, outer, inner, flags, until, q, k, v, cotangent, lse, delta, dq, lse_col, delta_col, acc):
    step = pl.program_id(1)

    @pl.when(flags[step] & FIRST != 0)
    def _():
        for g in range(shape.group):
            lse_col[g] = _column(lse[g : g + 1])
            delta_col[g] = _column(delta[g : g + 1])
        acc[...] = jnp.zeros_like(acc)

    def visit(bias):
        def head(g, _):
            scores = _dot(q[g], k[...], NT)
            if bias is not None:
                scores = scores + bias
            weights = jnp.exp(scores - _lanes(lse_col[g], shape.block))
            gradient = weights * (_dot(cotangent[g], v[...], NT) - _lanes(delta_col[g], shape.block))
            acc[g] += _dot(gradient.astype(k.dtype), k[...], NN)
            return 0

        jax.lax.fori_loop(0, shape.group, head, 0)

    query_block, key_block = jax.lax.rem(outer[step], shape.blocks), inner[step]
    _masked_or_not(flags[step], visit, lambda: _bias(shape, query_block, key_block, until[...], keys_down=False))

    @pl.when(flags[step] & LAST != 0)
    def _():
        dq[...] = (acc[...] * shape.dim**-0.5).astype(dq.dtype)


def _keys_gradient_kernel(shape, outer, inner, flags, until, q, k, v, cotangent, lse, delta, dk, dv, dk_acc, dv_acc):
    """Scores with the keys down and the queries across, so that both products with them need no transposition."""
    step = pl.program_id(1)

    @pl.when(flags[step] & FIRST != 0)
    def _():
        dk_acc[...] = jnp.zeros_like(dk_acc)
        dv_acc[...] = jnp.zeros_like(dv_acc)

    def visit(bias):
        def head(g, _):
            scores = _dot(k[...], q[g], NT)
            if bias is not None:
                scores = scores + bias
            weights = jnp.exp(scores - lse[pl.ds(g, 1)])
            dv_acc[...] += _dot(weights.astype(v.dtype), cotangent[g], NN)
            gradient = weights * (_dot(v[...], cotangent[g], NT) - delta[pl.ds(g, 1)])
            dk_acc[...] += _dot(gradient.astype(q.dtype), q[g], NN)
            return 0

        jax.lax.fori_loop(0, shape.group, head, 0)

    query_block, key_block = inner[step], jax.lax.rem(outer[step], shape.blocks)
    _masked_or_not(flags[step], visit, lambda: _bias(shape, query_block, key_block, until[...], keys_down=True))

    @pl.when(flags[step] & LAST != 0)
    def _():
        dk[...] = dk_acc[...].astype(dk.dtype)
        dv[...] = dv_acc[...].astype(dv.dtype)


def _masked_or_not(flags, visit, bias):
    """Blocks of which every pair is visible are the bulk of a long trunk: they make no mask."""
    pl.when(flags & WHOLE != 0)(lambda: visit(None))
    pl.when(flags & WHOLE == 0)(lambda: visit(bias()))


def _bias(shape: Shape, query_block, key_block, until, *, keys_down: bool):
    """0 or NEVER for every pair of the block; `until` is [1, block]."""
    square = (shape.block, shape.block)
    queries = query_block * shape.block + jax.lax.broadcasted_iota(jnp.int32, square, 1 if keys_down else 0)
    visible = queries < (_column(until)[:, :1] if keys_down else until)
    if shape.causal:
        keys = key_block * shape.block + jax.lax.broadcasted_iota(jnp.int32, square, 0 if keys_down else 1)
        visible &= keys <= queries
    return jnp.where(visible, 0.0, NEVER)


def _column(row):
    """[1, n] to [n, LANES]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _lanes(x, width: int):
    """[n, LANES], all lanes equal, to [n, width]."""
    return jnp.tile(x, (1, -(-width // LANES)))[:, :width]


def _dot(a, b, dimensions):
    """Float32 factors are multiplied in float32, not in the matrix unit's bfloat16."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _lay_out(q, k, v, visible_until, causal: bool):
    """Heads first, rows padded to whole blocks, queries scaled."""
    rows, length, heads, dim = q.shape
    kv_heads = k.shape[2]
    block = block_size(length, heads // kv_heads, causal)
    pad = -length % block
    shape = Shape(rows, kv_heads, heads // kv_heads, length + pad, dim, block, causal)
    # A padding key is seen by itself only where the order counts, else by nobody.
    own = jnp.arange(length, length + pad) + 1 if causal else jnp.zeros(pad, jnp.int32)
    until = jnp.concatenate([visible_until, jnp.broadcast_to(own.astype(jnp.int32), (rows, pad))], axis=1)
    q = _heads_first(q * jnp.asarray(dim**-0.5, q.dtype), kv_heads, pad)
    k, v = (jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (k, v))
    return shape, q, k, v, until[:, None]


def _heads_first(x, kv_heads: int, pad: int):
    rows, length, heads, dim = x.shape
    x = x.reshape(rows, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, pad), (0, 0)))


def _heads_last(x, length: int):
    rows, kv_heads, group, _, dim = x.shape
    return x[:, :, :, :length].transpose(0, 3, 1, 2, 4).reshape(rows, length, kv_heads * group, dim)


def _place(shape: Shape, side: str, outer, inner, step):
    """Row and block of a step: its outer block, or the inner one in the same row."""
    row = jax.lax.div(outer[step], shape.blocks)
    return row, jax.lax.rem(outer[step], shape.blocks) if side == "outer" else inner[step]


def _queries(shape: Shape, side: str = "outer") -> pl.BlockSpec:
    def index(head, step, outer, inner, flags):
        row, block = _place(shape, side, outer, inner, step)
        return row, head, 0, block, 0

    return pl.BlockSpec((None, None, shape.group, shape.block, shape.dim), index)


def _statistics(shape: Shape, side: str = "outer") -> pl.BlockSpec:
    def index(head, step, outer, inner, flags):
        row, block = _place(shape, side, outer, inner, step)
        return row, head, 0, block

    return pl.BlockSpec((None, None, shape.group, shape.block), index)


def _keys(shape: Shape, side: str) -> pl.BlockSpec:
    def index(head, step, outer, inner, flags):
        row, block = _place(shape, side, outer, inner, step)
        return row, head, block, 0

    return pl.BlockSpec((None, None, shape.block, shape.dim), index)


def _visible_until(shape: Shape, side: str) -> pl.BlockSpec:
    def index(head, step, outer, inner, flags):
        row, block = _place(shape, side, outer, inner, step)
        return row, 0, block

    return pl.BlockSpec((None, 1, shape.block), index)


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _statistics_like(shape: Shape) -> jax.ShapeDtypeStruct:
    sizes = (shape.rows, shape.kv_heads, shape.group, shape.length)
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _call(kernel, shape: Shape, work: WorkList, *, inputs, outputs, scratch, matmuls: int, interpret: bool):
    pairs = shape.rows * shape.kv_heads * shape.group * shape.length**2 // (2 if shape.causal else 1)
    arrays = [x for x, _ in inputs]
    moved = sum(x.size * x.dtype.itemsize for x in arrays + [x for x, _ in outputs])
    return pl.pallas_call(
        kernel,
        out_shape=[x for x, _ in outputs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(shape.kv_heads, work.count),
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=[pltpu.VMEM(sizes, jnp.float32) for sizes in scratch],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES),
        cost_estimate=pl.CostEstimate(flops=2 * matmuls * pairs * shape.dim, transcendentals=pairs, bytes_accessed=moved),
        name=f"attention{kernel.func.__name__.removesuffix('_kernel')}",
        interpret=interpret,
    )(work.outer, work.inner, work.flags, *arrays)
