"""What the layers of a lane's programs do with the cache: attention over a trunk and a branch apart, joined by log-sum-exp.

The keys of a trunk are read once for all its branches, as in Hydragen (arXiv 2402.05099).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrlhf_jax.inference.calls import Chunk, Copies, Step
from mmrlhf_jax.inference.lane import Cache, Keys
from mmrlhf_jax.models.attention import attend_part, join


def copy_branches(cache: Cache, copies: Copies) -> Cache:
    """Keys of all slots of a branch, also of those behind its prompt: these are written anew before they are seen."""

    def one(keys, source, target):
        return keys.at[target].set(keys[source], mode="drop")

    branches = jax.tree.map(lambda keys: jax.vmap(one)(keys, copies.source, copies.target), cache.branches)
    return cache._replace(branches=branches)


def attend_trunk(q, k, v, trunks: Keys, chunk: Chunk):
    """A chunk of one group's trunk against the trunk so far and itself: ([e, H, D], the trunks with its keys)."""
    here = jax.tree.map(lambda all_rows: all_rows[chunk.row], trunks)
    here = _written(here, k, v, chunk)
    visible = jnp.arange(here.k.shape[1])[None] <= (chunk.start + jnp.arange(q.shape[0]))[:, None]
    part = attend_part(q[None], here.k[None], here.v[None], visible[None])
    out = (part.out / part.total[..., None])[0].astype(q.dtype)
    return out, jax.tree.map(lambda all_rows, row: all_rows.at[chunk.row].set(row, mode="drop"), trunks, here)


def attend_branch(q, k, v, trunks: Keys, branches: Keys, chunk: Chunk):
    """A chunk of one group's branch against its trunk, the branch so far and itself."""
    trunk, here = jax.tree.map(lambda x: x[chunk.row], trunks), jax.tree.map(lambda x: x[chunk.slot], branches)
    here = _written(here, k, v, chunk)
    before = jnp.broadcast_to(jnp.arange(trunk.k.shape[1]) < chunk.trunk, (1, q.shape[0], trunk.k.shape[1]))
    own = jnp.arange(here.k.shape[1])[None] <= (chunk.start + jnp.arange(q.shape[0]))[:, None]
    parts = (
        attend_part(q[None], trunk.k[None], trunk.v[None], before),
        attend_part(q[None], here.k[None], here.v[None], own[None]),
    )
    out = join(*parts)[0].astype(q.dtype)
    return out, jax.tree.map(lambda all_slots, slot: all_slots.at[chunk.slot].set(slot, mode="drop"), branches, here)


def _written(keys: Keys, k: Float[Array, "e K D"], v: Float[Array, "e K D"], chunk: Chunk) -> Keys:
    """The keys of one trunk or branch [K, S, D] with the chunk's; unchanged for a group without work."""

    def one(old, new):
        written = jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(0, 1).astype(old.dtype), chunk.start, axis=1)
        return jnp.where(chunk.count > 0, written, old)

    return Keys(one(keys.k, k), one(keys.v, v))


def attend_step(q, k, v, trunks: Keys, branches: Keys, step: Step, places: int):
    """One token of each of a group's B branches: against its trunk, whose keys are read once for all its branches, and against
    its own. Returns ([B, H, D], the branches with its keys)."""
    count = q.shape[0]
    write = lambda keys, new: keys.at[jnp.arange(count), :, step.length].set(new.astype(keys.dtype), mode="drop")
    branches = jax.tree.map(write, branches, Keys(k, v))
    rows = trunks.k.shape[0]
    queries = jnp.zeros((rows, places, *q.shape[1:]), q.dtype).at[step.row, step.place].set(q, mode="drop")
    lengths = jnp.zeros(rows, jnp.int32).at[step.row].max(step.trunk, mode="drop")
    before = jnp.broadcast_to((jnp.arange(trunks.k.shape[2]) < lengths[:, None])[:, None], (rows, places, trunks.k.shape[2]))
    shared = jax.tree.map(lambda x: x[step.row, step.place], attend_part(queries, trunks.k, trunks.v, before))
    own = jnp.arange(branches.k.shape[2])[None] <= step.length[:, None]
    alone = jax.tree.map(lambda x: x[:, 0], attend_part(q[:, None], branches.k, branches.v, own[:, None]))
    return join(shared, alone).astype(q.dtype), branches
