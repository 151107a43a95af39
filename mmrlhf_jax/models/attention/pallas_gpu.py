"""Attention on GPU: flash-attention kernels in Pallas' Triton dialect that compute only the blocks that `visibility.py` lists.

The grid is (head, block, row). Heads vary fastest, so that programs that run together share keys and values in the cache. A
program knows its row, head and block, and reads from `BlockLists` which inner blocks to visit.

No array is transposed, padded or repeated: queries are [B, S, H, D], keys and values [B, S, K, D], row statistics [B, H, S].
Tiles that reach beyond a row or a head are masked. Only `visible_until`, which is small, is padded to whole blocks.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.attention import kernels_gpu as kernels
from mmrlhf_jax.models.attention import tiles_gpu as tiles
from mmrlhf_jax.models.attention.differentiable import differentiable
from mmrlhf_jax.models.attention.kernels_gpu import Shape
from mmrlhf_jax.models.attention.visibility import BlockLists, block_lists, most_pairs, rectangle_kinds

HEAD_SIZES = (16, 256)  # smallest and largest head that the kernels take
OLDEST = 8.0  # the oldest compute capability that Triton compiles for: Ampere's


class Blocks(NamedTuple):
    """Slots of a block of queries and a block of keys, and how Triton compiles a kernel for it."""

    queries: int
    keys: int
    warps: int
    stages: int


class KernelBlocks(NamedTuple):
    """The blocks of each kernel."""

    forward: Blocks
    queries_gradient: Blocks
    keys_gradient: Blocks


def kernel_blocks(length: int, dim: int, dtype) -> KernelBlocks:
    """The blocks of the three kernels for rows of `length` slots. Short rows are one block."""
    chosen = _chosen(dim, jnp.dtype(dtype))
    longest = max(pl.next_power_of_2(length), tiles.NARROWEST)
    return KernelBlocks(*(b._replace(queries=min(b.queries, longest), keys=min(b.keys, longest)) for b in chosen))


def _chosen(dim: int, dtype: jnp.dtype) -> KernelBlocks:
    """So large that no kernel needs more shared memory than a GPU of capability 8.9 has, 99 KiB, and that in bfloat16 none
    spills registers on capability 8.0, 8.9 or 9.0 if the row is whole blocks.

    Products of float32 inputs are not computed by matrix units and keep their operands in registers, so their blocks are small.
    """
    if dtype == jnp.float32:
        if dim > 128:
            return KernelBlocks(*[Blocks(16, 16, 8, 1)] * 3)
        return KernelBlocks(Blocks(32, 32, 8, 1), Blocks(16, 16, 8, 1), Blocks(32, 32, 8, 1))
    width = tiles.padded(dim)
    if width <= 64:
        return KernelBlocks(Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 3))
    if width < 128:
        return KernelBlocks(Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 3))
    if width == 128:
        return KernelBlocks(Blocks(128, 64, 8, 3), Blocks(64, 64, 4, 2), Blocks(64, 64, 8, 2))
    return KernelBlocks(Blocks(64, 32, 8, 2), Blocks(32, 32, 4, 2), Blocks(32, 32, 8, 2))


def obstacle(dim: int) -> str | None:
    """Why the kernels cannot compute heads of size `dim` on the GPUs of this process, if it has any; None if they can."""
    smallest, largest = HEAD_SIZES
    if not smallest <= dim <= largest:
        return f"takes heads of {smallest} to {largest} on GPUs, not {dim}"
    here = jax.local_devices() if jax.default_backend() == "gpu" else []
    for device in here:
        if not _supported(str(device.compute_capability)):
            return f"needs NVIDIA GPUs of compute capability {OLDEST} or later, not {device.compute_capability}"
    return None


def _supported(capability: str) -> bool:
    """Whether a compute capability is one of NVIDIA's, which are numbers, and not too old."""
    try:
        return float(capability) >= OLDEST
    except ValueError:
        return False


def forward(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    since: Int[Array, "B S"] | None,
    *,
    causal: bool,
    interpret: bool,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B H S"]]:
    """(the attention's output, the log-sum-exp of every query's scores for the backward pass)."""
    call = _Call(q, k, visible_until, since, causal, interpret, kernel_blocks(q.shape[1], q.shape[3], q.dtype).forward)
    rows, length, heads, _ = q.shape
    lse = jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)
    return call.by_query(
        kernels.attention_forward,
        inputs=[(q, call.query_head), (k, call.shared_head), (v, call.shared_head)],
        outputs=[(_like(q), call.query_head), (lse, call.statistic)],
        products=2,
    )


def backward(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    visible_until: Int[Array, "B S"],
    since: Int[Array, "B S"] | None,
    out: Float[Array, "B S H D"],
    lse: Float[Array, "B H S"],
    cotangent: Float[Array, "B S H D"],
    *,
    causal: bool,
    interpret: bool,
) -> tuple[Float[Array, "B S H D"], Float[Array, "B S K D"], Float[Array, "B S K D"]]:
    """Gradients of queries, keys and values: one kernel goes over the key blocks of every query block (dq), the other over the
    query blocks of every key block (dk, dv)."""
    # The softmax's derivative needs sum_k p dp, which equals sum_d out * cotangent.
    delta = (out.astype(jnp.float32) * cotangent.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    cotangent = cotangent.astype(q.dtype)
    blocks = kernel_blocks(q.shape[1], q.shape[3], q.dtype)

    call = _Call(q, k, visible_until, since, causal, interpret, blocks.queries_gradient)
    keyed = [(k, call.shared_head), (v, call.shared_head)]
    statistics = [(lse, call.statistic), (delta, call.statistic)]
    (dq,) = call.by_query(
        kernels.attention_queries_gradient,
        inputs=[(q, call.query_head), *keyed, (cotangent, call.query_head), *statistics],
        outputs=[(_like(q), call.query_head)],
        products=3,
    )
    call = _Call(q, k, visible_until, since, causal, interpret, blocks.keys_gradient)
    statistics = [(lse, call.statistics), (delta, call.statistics)]
    dk, dv = call.by_key(
        kernels.attention_keys_gradient,
        inputs=[(q, call.query_heads), (k, call.head), (v, call.head), (cotangent, call.query_heads), *statistics],
        outputs=[(_like(k), call.head), (_like(v), call.head)],
        products=4,
    )
    return dq, dk, dv


attend = differentiable(forward, backward)


def kinds_of(
    visible_until: Int[Array, "B S"], queries: int, keys: int, *, causal: bool, since: Int[Array, "B S"] | None = None
) -> tuple[Int[Array, "B T"] | Int[Array, "B 2T"], Int[Array, "B N M"]]:
    """(`visible_until` for rows of whole blocks of keys, and `since` behind it if there is one; the kind of every block of the
    row).

    No query beyond a row sees a key, and no query sees a key beyond it.
    """
    length = visible_until.shape[1]
    beyond = ((0, 0), (0, -length % keys))
    until = jnp.pad(jnp.minimum(visible_until, length).astype(jnp.int32), beyond)
    if since is not None:
        since = jnp.pad(since.astype(jnp.int32), beyond, constant_values=length)
    kinds = rectangle_kinds(until, queries, keys, causal=causal, since=since)
    until = until if since is None else jnp.concatenate([until, since], axis=1)
    return until, kinds[:, : -(-length // queries)]


class _Call:
    """One kernel's call: its static sizes, the blocks that it visits, and what a program sees of each array."""

    def __init__(self, q, k, visible_until, since, causal: bool, interpret: bool, blocks: Blocks):
        self.rows, length, self.heads, dim = q.shape
        self.kv_heads = k.shape[2]
        self.shape = Shape(length, dim, self.heads // self.kv_heads, blocks.queries, blocks.keys, causal, since is not None)
        self.blocks, self.interpret = blocks, interpret
        self.until, self.kinds = kinds_of(visible_until, blocks.queries, blocks.keys, causal=causal, since=since)

        group, queries, keys = self.shape.group, self._whole(blocks.queries), self._whole(blocks.keys)
        self.query_head = pl.BlockSpec((None, queries, None, tiles.padded(dim)), lambda h, i, row: (row, 0, h, 0))
        self.shared_head = pl.BlockSpec((None, keys, None, tiles.padded(dim)), lambda h, i, row: (row, 0, h // group, 0))
        self.query_heads = pl.BlockSpec((None, queries, group, tiles.padded(dim)), lambda h, i, row: (row, 0, h, 0))
        self.head = pl.BlockSpec((None, keys, None, tiles.padded(dim)), lambda h, i, row: (row, 0, h, 0))
        self.statistic = pl.BlockSpec((None, None, queries), lambda h, i, row: (row, h, 0))
        self.statistics = pl.BlockSpec((None, group, queries), lambda h, i, row: (row, h, 0))

    def _whole(self, block: int) -> int:
        """The slots of a row in whole blocks."""
        return self.shape.length + -self.shape.length % block

    def by_query(self, kernel, **arrays):
        """A program for every block of queries of every query head, which goes over blocks of keys."""
        return self._run(kernel, self.heads, block_lists(self.kinds), reverse=True, **arrays)

    def by_key(self, kernel, **arrays):
        """A program for every block of keys of every key/value head, which goes over blocks of queries."""
        return self._run(kernel, self.kv_heads, block_lists(self.kinds.swapaxes(1, 2)), reverse=False, **arrays)

    def _run(self, kernel, heads: int, lists: BlockLists, *, reverse: bool, inputs, outputs, products: int):
        _, outer, inner = lists.inner.shape
        place = (lambda h, i, row: (row, outer - 1 - i, 0)) if reverse else (lambda h, i, row: (row, i, 0))
        listed = [
            (lists.inner, pl.BlockSpec((None, None, inner), place)),
            (lists.counts, pl.BlockSpec((None, None, 2), place)),
            (self.until, pl.BlockSpec((None, self.until.shape[1]), lambda h, i, row: (row, 0))),
        ]
        inputs = [*listed, *inputs]
        cost = self._cost([x for x, _ in (*inputs, *outputs)], products)
        return pl.pallas_call(
            partial(kernel, self.shape),
            out_shape=[x for x, _ in outputs],
            grid=(heads, outer, self.rows),
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            compiler_params=plgpu.CompilerParams(num_warps=self.blocks.warps, num_stages=self.blocks.stages),
            cost_estimate=cost,
            metadata={"flops": str(cost.flops)},  # the compiled program's text has it; it does not have the cost estimate
            name=kernel.__name__,
            interpret=self.interpret,
        )(*(x for x, _ in inputs))

    def _cost(self, arrays, products: int) -> pl.CostEstimate:
        """An upper bound, because the number of visible blocks is known only on the device."""
        queries, keys = self.blocks.queries, self.blocks.keys
        pairs = self.rows * self.heads * most_pairs(self.shape.length, queries, keys, causal=self.shape.causal)
        moved = sum(x.size * x.dtype.itemsize for x in arrays)
        flops = 2 * products * pairs * self.shape.dim
        return pl.CostEstimate(flops=flops, transcendentals=pairs, bytes_accessed=moved)


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
