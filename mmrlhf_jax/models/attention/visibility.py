"""The block structure of the attention mask: which pairs of query block and key block a kernel computes, and in which order.

For a key block [a, b) and a later query block [c, d), two numbers of the key block decide: some pair is visible if the largest
`visible_until` of its keys exceeds c, and every pair if the smallest is at least d. So finding the visible blocks of a row
costs O(blocks²), not O(slots²), and blocks between different branches or groups are not in the work list.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

HIDDEN, PARTIAL, FULL = 0, 1, 2

# Flags of a step: it is the first or last of its outer block, or its block has no masked pair.
FIRST, LAST, WHOLE = 1, 2, 4


class WorkList(NamedTuple):
    """The block pairs to compute, outer block by outer block; only the first `count` entries are valid.

    `outer` is row * blocks + block, of queries in `by_query` and of keys in `by_key`; `inner` is the other side's block.
    """

    outer: Int[Array, "T"]
    inner: Int[Array, "T"]
    flags: Int[Array, "T"]
    count: Int[Array, ""]


def block_kinds(visible_until: Int[Array, "B S"], block: int, *, causal: bool) -> Int[Array, "B N N"]:
    """HIDDEN, PARTIAL or FULL for every (query block, key block); `block` divides S.

    Diagonal blocks are never HIDDEN: every query attends to itself (`visible_until[k] > k`). So every output block is written.
    """
    rows, length = visible_until.shape
    per_block = visible_until.reshape(rows, 1, length // block, block)
    latest, earliest = per_block.max(axis=-1), per_block.min(axis=-1)
    number = jnp.arange(length // block)
    queries, keys = number[:, None], number[None, :]
    seen = (latest > queries * block) | (queries == keys)
    whole = earliest >= (queries + 1) * block
    if causal:
        seen, whole = seen & (keys <= queries), whole & (keys < queries)
    return jnp.where(whole, FULL, jnp.where(seen, PARTIAL, HIDDEN))


def by_query(kinds: Int[Array, "B N N"], *, causal: bool) -> WorkList:
    """For every query block, its visible key blocks in order; for the forward pass and the gradient of the queries."""
    return _work_list(kinds, causal)


def by_key(kinds: Int[Array, "B N N"], *, causal: bool) -> WorkList:
    """For every key block, the query blocks that attend to it, in order; for the gradients of keys and values."""
    return _work_list(kinds.swapaxes(1, 2), causal)


def _work_list(kinds: Int[Array, "B N N"], causal: bool) -> WorkList:
    rows, blocks, _ = kinds.shape
    most = rows * (blocks * (blocks + 1) // 2 if causal else blocks * blocks)
    flat = kinds.reshape(-1)
    count = (flat != HIDDEN).sum(dtype=jnp.int32)
    (place,) = jnp.nonzero(flat != HIDDEN, size=most, fill_value=0)
    place = place.astype(jnp.int32)
    outer, inner = place // blocks, place % blocks
    step = jnp.arange(most)
    changes = outer[1:] != outer[:-1]
    first = jnp.concatenate([jnp.array([True]), changes])
    last = jnp.concatenate([changes, jnp.array([True])]) | (step == count - 1)
    flags = FIRST * first + LAST * last + WHOLE * (flat[place] == FULL)
    return WorkList(outer, inner, flags.astype(jnp.int32), count)
