"""The block structure of the attention mask: which pairs of query block and key block a kernel computes, and in which order.

For a key block [a, b) and a later query block [c, d), two numbers of the key block decide: some pair is visible if the largest
`visible_until` of its keys exceeds c, and every pair if the smallest is at least d. So finding the visible blocks of a row
costs O(blocks²), not O(slots²), and blocks between different branches or groups are not in the work list.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
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


def block_kinds(
    visible_until: Int[Array, "B S"], block: int, *, causal: bool, since: Int[Array, "B S"] | None = None
) -> Int[Array, "B N N"]:
    """HIDDEN, PARTIAL or FULL for every (query block, key block); `block` divides S.

    Diagonal blocks are never HIDDEN: every query attends to itself (`visible_until[k] > k`). So every output block is written.
    """
    kinds = rectangle_kinds(visible_until, block, block, causal=causal, since=since)
    number = jnp.arange(kinds.shape[1])
    return jnp.where(number[:, None] == number[None, :], jnp.maximum(kinds, PARTIAL), kinds)


def rectangle_kinds(
    visible_until: Int[Array, "B S"], queries: int, keys: int, *, causal: bool, since: Int[Array, "B S"] | None = None
) -> Int[Array, "B N M"]:
    """HIDDEN, PARTIAL or FULL for every (block of `queries` slots, block of `keys` slots).

    Both sizes are powers of two, or equal. `keys` divides S; the last block of queries may reach beyond S. `since`, with the
    starts of segments whose ends are `visible_until`, hides a key from the queries before its segment.
    """
    rows, length = visible_until.shape
    per_block = visible_until.reshape(rows, 1, length // keys, keys)
    latest, earliest = per_block.max(axis=-1), per_block.min(axis=-1)
    first_query = queries * jnp.arange(-(-length // queries))[:, None]
    first_key = keys * jnp.arange(length // keys)[None, :]
    seen = latest > first_query
    whole = earliest >= first_query + queries
    if causal:
        # Of two blocks that overlap one contains the other, so that a slot of both sees itself.
        seen, whole = seen & (first_key < first_query + queries), whole & (first_key + keys <= first_query)
    if since is not None:
        # The keys of a block are consecutive, and so are all slots of their segments together.
        per_block = since.reshape(rows, 1, length // keys, keys)
        seen &= per_block.min(axis=-1) < first_query + queries
        whole &= per_block.max(axis=-1) <= first_query
    return jnp.where(whole, FULL, jnp.where(seen, PARTIAL, HIDDEN))


def most_pairs(length: int, queries: int, keys: int, *, causal: bool) -> int:
    """The number of (query, key) pairs in all blocks of a row that some `visible_until` makes visible."""
    rows, columns = -(-length // queries), -(-length // keys)
    blocks = sum(min(-(-(i + 1) * queries // keys), columns) for i in range(rows)) if causal else rows * columns
    return blocks * queries * keys


class BlockLists(NamedTuple):
    """For every outer block the inner blocks to compute: first those without a masked pair, then those with one.

    Of `inner[row, block]` the first `counts[row, block, 0]` entries are FULL blocks, and the entries up to
    `counts[row, block, 1]` are PARTIAL ones; what follows is not computed.
    """

    inner: Int[Array, "B N M"]
    counts: Int[Array, "B N 2"]


def block_lists(kinds: Int[Array, "B N M"]) -> BlockLists:
    """The inner blocks of every outer block, in the order of their kinds and then of their slots. For lists by key,
    `kinds.swapaxes(1, 2)`."""
    inner_blocks = kinds.shape[2]
    place = (FULL - kinds) * inner_blocks + jnp.arange(inner_blocks)
    inner = jnp.sort(place, axis=-1) % inner_blocks
    counts = jnp.stack([(kinds == FULL).sum(axis=-1), (kinds != HIDDEN).sum(axis=-1)], axis=-1)
    return BlockLists(inner.astype(jnp.int32), counts.astype(jnp.int32))


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


def segment_starts(until: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """The first slot of every slot's segment, of segments of consecutive slots whose ends are `until`."""
    slots = jnp.arange(until.shape[1], dtype=jnp.int32)
    begins = jnp.concatenate([jnp.ones_like(until[:, :1], bool), until[:, 1:] != until[:, :-1]], axis=1)
    return jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)
