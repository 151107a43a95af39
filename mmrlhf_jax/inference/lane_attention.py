"""What the layers of a lane's programs do with the cache: attention over a trunk and a branch apart, joined by log-sum-exp.

The keys of a trunk are read once for all its branches, as in Hydragen (arXiv 2402.05099).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mmrlhf_jax.inference.calls import Chunk, Copies, Step
from mmrlhf_jax.inference.lane import Cache, Keys, TrunkKeys
from mmrlhf_jax.models.attention import Part, attend_part, attended, join, merged

BLOCK = 512  # keys of a trunk that a chunk attends to at a time; blocks that no query sees are left out


def blocks(seen: int) -> int:
    """The number of blocks that hold `seen` keys of a trunk."""
    return max(1, -(-seen // BLOCK))


def move_keys(cache: Cache, rows: Int[Array, "G"], copies: Copies) -> Cache:
    """The cache in which every group's trunk that was on its way is in its row, and branches have the keys of others.

    A row beyond the last one, or a target beyond the last slot, moves nothing. Whole branches are copied: what is behind their
    prompt is written anew before it is seen.
    """

    def place(trunks: TrunkKeys, begun: Keys, row) -> TrunkKeys:
        whole = TrunkKeys(begun.k.swapaxes(1, 2), begun.v)
        return jax.tree.map(lambda old, new: old.at[row].set(new, mode="drop"), trunks, whole)

    def copy(keys, source, target):
        return keys.at[target].set(keys[source], mode="drop")

    trunks = (jax.vmap(place)(*layer, rows) for layer in zip(cache.trunks, cache.begun, strict=True))
    branches = jax.tree.map(lambda keys: jax.vmap(copy)(keys, copies.source, copies.target), cache.branches)
    return cache._replace(trunks=tuple(trunks), branches=branches)


def attend_trunk(q, k, v, begun: Keys, chunk: Chunk, count):
    """A chunk of one group's trunk against the trunk so far and itself, which are in `count` blocks: ([e, H, D], the trunk with
    its keys)."""
    begun = _written(begun, k, v, (0, chunk.start, 0), chunk.count)
    until = chunk.start + 1 + jnp.arange(q.shape[0])
    part = _attend_blocks(q, TrunkKeys(begun.k.swapaxes(1, 2), begun.v), until, count)
    return attended(part)[0].astype(q.dtype), begun


def attend_branch(q, k, v, trunks: TrunkKeys, branches: Keys, chunk: Chunk, count):
    """A chunk of one group's branch against its trunk, which is in `count` blocks, the branch so far and itself."""
    branches = _written(branches, k[None], v[None], (chunk.slot, 0, chunk.start, 0), chunk.count)
    trunk, here = jax.tree.map(lambda x: x[chunk.row], trunks), jax.tree.map(lambda x: x[chunk.slot], branches)
    own = jnp.arange(here.v.shape[1])[None] <= (chunk.start + jnp.arange(q.shape[0]))[:, None]
    parts = (
        _attend_blocks(q, trunk, jnp.full(q.shape[0], chunk.trunk), count),
        attend_part(q[None], here.k.swapaxes(1, 2)[None], here.v[None], own[None]),
    )
    return join(*parts)[0].astype(q.dtype), branches


def _attend_blocks(q: Float[Array, "e H D"], keys: TrunkKeys, until: Int[Array, "e"], count) -> Part:
    """Queries against the first `count` blocks of one trunk; query i sees the keys before `until[i]`.

    With more blocks than hold what is seen, the result has the same bits: a text does not depend on longer ones beside it.
    """
    size = min(BLOCK, keys.v.shape[1])

    def block(number) -> Part:
        start = number * size
        k = jax.lax.dynamic_slice_in_dim(keys.k, start, size, axis=2)
        v = jax.lax.dynamic_slice_in_dim(keys.v, start, size, axis=1)
        visible = start + jnp.arange(size) < until[:, None]
        return attend_part(q[None], k[None], v[None], visible[None])

    if size == keys.v.shape[1]:
        return block(0)
    return jax.lax.fori_loop(1, count, lambda number, part: merged(part, block(number)), block(0))


def marked(new: Keys) -> Keys:
    """Computed keys and values [..., D] in the form that a cache has: see `Keys`."""
    finite = jnp.isfinite(new.v)
    return Keys(jnp.where(finite.all(axis=-1, keepdims=True), new.k, jnp.nan), jnp.where(finite, new.v, 0))


def _written(keys: Keys, k: Float[Array, "... e K D"], v: Float[Array, "... e K D"], place, count) -> Keys:
    """Keys [..., K, S, D] with those of a chunk at `place`; unchanged for a group without work. Only the chunk's slots are read
    and written, so that the compiler changes the cache in place."""

    def one(old, new):
        new = new.swapaxes(-3, -2).astype(old.dtype)
        here = jax.lax.dynamic_slice(old, place, new.shape)
        return jax.lax.dynamic_update_slice(old, jnp.where(count > 0, new, here), place)

    return jax.tree.map(one, keys, marked(Keys(k, v)))


def write_step(branches: Keys, new: Keys, length: Int[Array, "G B"], placed: NamedSharding) -> Keys:
    """The branches [G, B, K, N, D], which are placed so, with the keys [G, B, K, D] of one token each behind `length` others.

    Every device writes its own heads, with indices for every axis before the last one. With one left out, XLA for TPU copies
    the branches; with the write left to the partitioner, XLA gathers the new keys of all heads on some platforms.
    """
    whole = placed.spec

    def one_device(branches: Keys, new: Keys, length) -> Keys:
        at = *jnp.ogrid[tuple(slice(size) for size in new.k.shape[:3])], length[..., None]
        return jax.tree.map(lambda keys, new: keys.at[at].set(new.astype(keys.dtype), mode="drop"), branches, new)

    specs = whole, PartitionSpec(*whole[:3], None), PartitionSpec(whole[0], None)
    return jax.shard_map(one_device, mesh=placed.mesh, in_specs=specs, out_specs=whole)(branches, marked(new), length)


def attend_step(q: Float[Array, "B H D"], trunks: TrunkKeys, branches: Keys, step: Step, places: int) -> Float[Array, "B H D"]:
    """One token of each of a group's B branches: against its trunk, whose keys are read once for all its branches, and against
    its own, which has the keys of this token."""
    rows = trunks.k.shape[0]
    queries = jnp.zeros((rows, places, *q.shape[1:]), q.dtype).at[step.row, step.place].set(q, mode="drop")
    lengths = jnp.zeros(rows, jnp.int32).at[step.row].max(step.trunk, mode="drop")
    before = jnp.broadcast_to((jnp.arange(trunks.v.shape[2]) < lengths[:, None])[:, None], (rows, places, trunks.v.shape[2]))
    shared = jax.tree.map(lambda x: x[step.row, step.place], attend_part(queries, trunks.k, trunks.v, before))
    own = jnp.arange(branches.k.shape[2])[None] <= step.length[:, None]
    alone = jax.tree.map(lambda x: x[:, 0], attend_part(q[:, None], branches.k.swapaxes(2, 3), branches.v, own[:, None]))
    return join(shared, alone).astype(q.dtype)
