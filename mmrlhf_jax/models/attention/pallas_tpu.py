"""Attention on TPU: flash-attention kernels in Pallas that compute only the blocks in `visibility.py`'s work lists.

The grid is (key/value head, step). The number of steps is the number of visible blocks, which is known only on the device; the
work list is prefetched into scalar memory, where it determines which blocks are copied next. A step handles all query heads
that share the key/value head, so that keys, values and mask are loaded once for them.

Layouts: queries [B, K, G, S, D] (G query heads per key/value head), keys and values [B, K, S, D], row statistics [B, K, G, S].
jax's `splash_attention` does not fit: its segment ids cannot express trees, and its dynamic mask is S x S.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.attention import kernels_tpu as kernels
from mmrlhf_jax.models.attention.differentiable import differentiable
from mmrlhf_jax.models.attention.kernels_tpu import LANES, Shape
from mmrlhf_jax.models.attention.visibility import WorkList, block_kinds, by_key, by_query

BLOCKS = (512, 256, 128)
WHOLE_ROW = 1152  # a row without causal mask of at most so many slots is one block: InternViT has 1025, SigLIP 729
QUERIES_AT_ONCE = 4096  # most block x query heads per key/value head that fit in vector memory
VMEM_BYTES = 48 << 20


def block_size(length: int, group: int, causal: bool) -> int:
    """The largest block that fits vector memory and adds at most an eighth of padding to a row.

    Without `causal` no block can be skipped, so a row as short as an image is a single block.
    """
    if not causal and length <= WHOLE_ROW:
        return length + -length % LANES
    fitting = [b for b in BLOCKS if b * group <= QUERIES_AT_ONCE] or [BLOCKS[-1]]
    return next((b for b in fitting if 8 * (-length % b) <= length), fitting[-1])


def forward(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    since: Int[Array, "B S"] | None,
    *,
    causal: bool,
    interpret: bool,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B K G S"]]:
    """(the attention's output, the log-sum-exp of every query's scores for the backward pass)."""
    length = q.shape[1]
    shape, q, k, v, until = _lay_out(q, k, v, visible_until, since, causal)
    specs = _specs(shape, outer="queries")
    statistics = jax.ShapeDtypeStruct((shape.rows, shape.kv_heads, shape.group, shape.length), jnp.float32)
    out, lse = _call(
        kernels.forward_kernel,
        shape,
        by_query(_kinds(shape, until), causal=causal),
        inputs=[(until, specs.until), (q, specs.queries), (k, specs.keys), (v, specs.keys)],
        outputs=[(_like(q), specs.queries), (statistics, specs.statistics)],
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
    since: Int[Array, "B S"] | None,
    out: Float[Array, "B S H D"],
    lse: Float[Array, "B K G S"],
    cotangent: Float[Array, "B S H D"],
    *,
    causal: bool,
    interpret: bool,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B S K D"], Float[Array, "B S K D"]]:
    """Gradients of q, k and v, by two kernels: one iterates over the key blocks of every query block (dq), the other over the
    query blocks of every key block (dk, dv)."""
    length = q.shape[1]
    # The softmax's derivative needs sum_k p dp, which equals sum_d out * cotangent.
    delta = (out.astype(jnp.float32) * cotangent.astype(jnp.float32)).sum(axis=-1)
    delta = delta.transpose(0, 2, 1).reshape(lse.shape)
    shape, q, k, v, until = _lay_out(q, k, v, visible_until, since, causal)
    pad = shape.length - length
    lse, delta = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, pad))) for x in (lse, delta))
    cotangent = _heads_first(cotangent.astype(q.dtype), shape.kv_heads, pad)
    kinds = _kinds(shape, until)

    def inputs(specs: Specs):
        keyed = [(until, specs.until), (q, specs.queries), (k, specs.keys), (v, specs.keys)]
        return [*keyed, (cotangent, specs.queries), (lse, specs.statistics), (delta, specs.statistics)]

    specs = _specs(shape, outer="queries")
    (dq,) = _call(
        kernels.queries_gradient_kernel,
        shape,
        by_query(kinds, causal=causal),
        inputs=inputs(specs),
        outputs=[(_like(q), specs.queries)],
        scratch=[(shape.group, shape.block, LANES)] * 2 + [(shape.group, shape.block, shape.dim)],
        matmuls=3,
        interpret=interpret,
    )
    specs = _specs(shape, outer="keys")
    dk, dv = _call(
        kernels.keys_gradient_kernel,
        shape,
        by_key(kinds, causal=causal),
        inputs=inputs(specs),
        outputs=[(_like(k), specs.keys), (_like(v), specs.keys)],
        scratch=[(shape.block, shape.dim)] * 2,
        matmuls=4,
        interpret=interpret,
    )
    dk, dv = (x[:, :, :length].transpose(0, 2, 1, 3) for x in (dk, dv))
    return _heads_last(dq, length), dk, dv


attend = differentiable(forward, backward)


def _lay_out(q, k, v, visible_until, since, causal: bool):
    """(Shape, q, k, v, `visible_until` [B, 1, S], or it and `since` as [B, 2, S]): heads before slots, rows padded to whole
    blocks, queries scaled by 1/√D."""
    rows, length, heads, dim = q.shape
    kv_heads = k.shape[2]
    block = block_size(length, heads // kv_heads, causal)
    pad = -length % block
    segments = since is not None
    shape = Shape(rows, kv_heads, heads // kv_heads, length + pad, dim, block, causal, segments)
    # With a causal mask or segments a padding key is visible only to itself, else to no query.
    own = jnp.arange(length, length + pad) + 1 if causal or segments else jnp.zeros(pad, jnp.int32)
    until = jnp.concatenate([visible_until, jnp.broadcast_to(own.astype(jnp.int32), (rows, pad))], axis=1)
    if segments:
        since = jnp.concatenate([since, jnp.broadcast_to(own.astype(jnp.int32) - 1, (rows, pad))], axis=1)
    q = _heads_first(q * jnp.asarray(dim**-0.5, q.dtype), kv_heads, pad)
    k, v = (jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, pad), (0, 0))) for x in (k, v))
    return shape, q, k, v, jnp.stack([until, since], axis=1) if segments else until[:, None]


def _kinds(shape: Shape, until: Int[Array, "B 1 S"] | Int[Array, "B 2 S"]) -> Int[Array, "B N N"]:
    since = until[:, 1] if shape.segments else None
    return block_kinds(until[:, 0], shape.block, causal=shape.causal, since=since)


def _heads_first(x, kv_heads: int, pad: int):
    rows, length, heads, dim = x.shape
    x = x.reshape(rows, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, pad), (0, 0)))


def _heads_last(x, length: int):
    rows, kv_heads, group, _, dim = x.shape
    return x[:, :, :, :length].transpose(0, 3, 1, 2, 4).reshape(rows, length, kv_heads * group, dim)


class Specs(NamedTuple):
    """The block of each array that a step works on."""

    until: pl.BlockSpec
    queries: pl.BlockSpec
    keys: pl.BlockSpec
    statistics: pl.BlockSpec


def _specs(shape: Shape, outer: Literal["queries", "keys"]) -> Specs:
    """Block specs for a work list whose outer blocks are query blocks or key blocks."""

    def spec(sizes, side: str, index) -> pl.BlockSpec:
        def place(head, step, outer_blocks, inner_blocks, flags):
            row, block = jax.lax.div(outer_blocks[step], shape.blocks), jax.lax.rem(outer_blocks[step], shape.blocks)
            return index(row, head, block if side == outer else inner_blocks[step])

        return pl.BlockSpec(sizes, place)

    group, block, dim = shape.group, shape.block, shape.dim
    return Specs(
        until=spec((None, 2 if shape.segments else 1, block), "keys", lambda row, head, i: (row, 0, i)),
        queries=spec((None, None, group, block, dim), "queries", lambda row, head, i: (row, head, 0, i, 0)),
        keys=spec((None, None, block, dim), "keys", lambda row, head, i: (row, head, i, 0)),
        statistics=spec((None, None, group, block), "queries", lambda row, head, i: (row, head, 0, i)),
    )


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(kernel, shape: Shape, work: WorkList, *, inputs, outputs, scratch, matmuls: int, interpret: bool):
    # An upper bound, because the number of visible blocks is known only on the device. A plan subtracts the blocks that its
    # workload hides.
    pairs = shape.kv_heads * shape.group * work.outer.size * shape.block**2
    arrays = [x for x, _ in inputs]
    moved = sum(x.size * x.dtype.itemsize for x in arrays + [x for x, _ in outputs])
    return pl.pallas_call(
        partial(kernel, shape),
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
        name="attention_" + kernel.__name__.removesuffix("_kernel"),
        interpret=interpret,
    )(work.outer, work.inner, work.flags, *arrays)
