"""The programs of a lane: encode media, extend a trunk or a branch, and decode one token of every branch.

All have static shapes, so they are few, can be compiled ahead, and none is compiled later. Arrays have a leading axis G, one
entry per group of devices (the batch axes of the mesh): a group's branches stay with its trunks, and no call moves keys between
groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from mmrlhf_jax.inference.lane import BRANCH_CHUNKS, TRUNK_CHUNKS, Cache, Keys, Lane
from mmrlhf_jax.inference.lanes import power_of_two
from mmrlhf_jax.inference.requests import Tree
from mmrlhf_jax.inference.sampling import Draws, choose
from mmrlhf_jax.inference.unstacked import TwoForms, Weights
from mmrlhf_jax.models.attention import attend_part, join
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.media import Tiles
from mmrlhf_jax.models.taps import weighted_taps
from mmrlhf_jax.sharding.mesh import batch_sharding, rows_divisor, use_mesh
from mmrlhf_jax.sharding.rules import constrain

MOST_TOP = 20  # log-probs of likeliest tokens that can be asked for


class Media(NamedTuple):
    """Media of one trunk per group, laid out by its slots: the taps and weights of a visual slot, zeros elsewhere."""

    tiles: UInt8[Array, "G t H H 3"]
    taps: Int[Array, "G T K"]
    weights: Float[Array, "G T K"]
    fresh: Bool[Array, "G"]  # whether the group has a new trunk; the others keep their visual tokens


class Chunk(NamedTuple):
    """One chunk of e tokens per group. Tokens from `count` on are padding; a group without work has `count` 0."""

    tokens: Int[Array, "G e"]
    positions: Int[Array, "G e"] | Int[Array, "G e 3"]
    is_visual: Bool[Array, "G e"]
    count: Int[Array, "G"]
    start: Int[Array, "G"]  # the slot of the first token, in the trunk or in the branch
    row: Int[Array, "G"]
    slot: Int[Array, "G"]  # of the branch, if it is one that is extended
    trunk: Int[Array, "G"]  # tokens of the branch's trunk


class Step(NamedTuple):
    """What every branch does in one decoding step. A slot without a branch has row R, which is beyond the last one."""

    forced: Int[Array, "G B"]  # the token to feed; -1: the one that the last step chose
    position: Int[Array, "G B"]
    length: Int[Array, "G B"]  # tokens of the branch in the cache: the slot of the one that is fed
    row: Int[Array, "G B"]
    place: Int[Array, "G B"]
    trunk: Int[Array, "G B"]  # tokens of its trunk


class Chosen(NamedTuple):
    """The result of a decoding step for every slot. `rewards` are those of the conversations that end with the fed token, 0
    without a reward head; `top` has log-probs and tokens of the likeliest, if asked for."""

    tokens: Int[Array, "G B"]
    logps: Float[Array, "G B"]
    rewards: Float[Array, "G B"]
    top: tuple[Float[Array, "G B n"], Int[Array, "G B n"]] | None


class Programs:
    """A model's programs for one lane. Each is compiled when it is first used, or by `compile_all`; `compiled` names them."""

    def __init__(self, model: TwoForms, lane: Lane, mesh: Mesh):
        self.model, self.lane, self.mesh = model, lane, mesh
        self.groups = rows_divisor(mesh)
        self._made: dict[str, Callable] = {}
        self._cache = lane.abstract_cache(model.config.text, model.dtype, mesh)

    @property
    def compiled(self) -> tuple[str, ...]:
        return tuple(self._made)

    def compile_all(self, *, tiles: Sequence[int] = (), top: bool = False) -> None:
        """Compile every program. `tiles` are the numbers of tiles for which media are encoded; `top`: also the decoding step
        that gives log-probs of the likeliest tokens."""
        for size in TRUNK_CHUNKS:
            self._get(f"trunk {size}")
        for size in (size for size in BRANCH_CHUNKS if size <= self.lane.branch):
            self._get(f"branch {size}")
        for count in tiles:
            self._get(f"encode {count}")
        self._get("decode")
        if top:
            self._get("decode with logprobs")

    def encode(self, weights: Weights, visual: jax.Array, trees: Mapping[int, Tree]) -> jax.Array:
        """`visual`, [G, T, E], with the visual tokens of the trunks of `trees` (group -> tree); others' remain."""
        found = {group: tree.media() for group, tree in trees.items()}
        media = self._arrays(self._media(power_of_two(max(media.units for media in found.values()))))
        for group, tiles in found.items():
            self._lay_out(media, group, tiles)
        return self._get(f"encode {media.tiles.shape[1]}")(weights, visual, media)

    def _lay_out(self, media: Media, group: int, found: Tiles) -> None:
        """Write the media of one trunk into the arrays, by its slots."""
        geometry = self.model.config.geometry
        row = geometry.empty(slots=self.lane.trunk, tiles=media.tiles.shape[1], visual=len(found.slots))
        geometry.place(row, found, slot=0, tile=0, visual=0)
        media.tiles[group], media.fresh[group] = row.tiles, True
        media.taps[group, row.slots], media.weights[group, row.slots] = row.taps, row.weights

    def no_visual(self) -> jax.Array:
        """The argument `visual` before the first media."""
        shape = self._visual()
        make = jax.jit(lambda: jnp.zeros(shape.shape, shape.dtype), out_shardings=batch_sharding(self.mesh, 3))
        return make()

    def empty_chunk(self, size: int) -> Chunk:
        """A chunk without work, as NumPy arrays that can be written to."""
        return self._arrays(self._chunk(size))

    def empty_step(self) -> tuple[Step, Draws]:
        """A step of no branch, greedy for all, as NumPy arrays that can be written to."""
        step, draws = self._arrays(self._step()), self._arrays(self._draws())
        step.forced[:], step.row[:], draws.top_p[:] = -1, self.lane.rows, 1
        step.length[:] = self.lane.branch  # beyond the last slot, so that nothing is written
        return step, draws

    def _arrays(self, shapes):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def extend_trunk(self, weights: Weights, cache: Cache, visual: jax.Array, chunk: Chunk) -> Cache:
        return self._get(f"trunk {chunk.tokens.shape[1]}")(weights, cache, visual, chunk)

    def extend_branch(self, weights: Weights, cache: Cache, chunk: Chunk) -> Cache:
        return self._get(f"branch {chunk.tokens.shape[1]}")(weights, cache, chunk)

    def decode(
        self, weights: Weights, cache: Cache, last: jax.Array, step: Step, draws: Draws, *, top: bool = False
    ) -> tuple[Cache, Chosen]:
        """One token of every branch. `last` are the tokens that the last step chose."""
        return self._get("decode with logprobs" if top else "decode")(weights, cache, last, step, draws)

    def lower(self, name: str) -> jax.stages.Lowered:
        """The program of this name, for the compiler. The cache and the visual tokens are changed in place."""
        kind, _, size = name.partition(" ")
        caches, ours = jax.tree.map(lambda x: x.sharding, self._cache), batch_sharding(self.mesh, 2)
        if kind == "encode":
            run = jax.jit(self._encode, donate_argnums=1, out_shardings=batch_sharding(self.mesh, 3))
        elif kind == "trunk":
            run = jax.jit(self._extend_trunk, donate_argnums=1, out_shardings=caches)
        elif kind == "branch":
            run = jax.jit(self._extend_branch, donate_argnums=1, out_shardings=caches)
        else:
            results = Chosen(ours, ours, ours, (batch_sharding(self.mesh, 3),) * 2 if size else None)
            decode = functools.partial(self._decode, top=bool(size))
            run = jax.jit(decode, donate_argnums=1, out_shardings=(caches, results))
        with use_mesh(self.mesh), matmul_precision(self.model.dtype):
            return run.lower(*self.arguments(name))

    def arguments(self, name: str) -> tuple:
        """Shapes and shardings of a program's arguments."""
        kind, _, size = name.partition(" ")
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(self.mesh, len(x.shape)))
        weights = self.model.apart()
        if kind == "encode":
            return weights, *jax.tree.map(place, (self._visual(), self._media(int(size))))
        if kind == "trunk":
            return weights, self._cache, *jax.tree.map(place, (self._visual(), self._chunk(int(size))))
        if kind == "branch":
            return weights, self._cache, jax.tree.map(place, self._chunk(int(size)))
        return weights, self._cache, *jax.tree.map(place, (self._whole("B"), self._step(), self._draws()))

    def _get(self, name: str) -> Callable:
        if name not in self._made:
            self._made[name] = self.lower(name).compile()
        return self._made[name]

    # What the programs compute ---------------------------------------------------------------------------------------

    def _encode(self, weights: Weights, visual: jax.Array, media: Media) -> jax.Array:
        model, _ = self.model.merge(weights)
        found = weighted_taps(model.visual_features(media.tiles), media.taps, media.weights)
        return constrain(jnp.where(media.fresh[:, None, None], found.astype(visual.dtype), visual), "batch", None, None)

    def _extend_trunk(self, weights: Weights, cache: Cache, visual: jax.Array, chunk: Chunk) -> Cache:
        model, layers = self.model.merge(weights)
        x = model.language.embed(chunk.tokens)
        here = jax.vmap(lambda values, start: jax.lax.dynamic_slice_in_dim(values, start, x.shape[1]))(visual, chunk.start)
        x = jnp.where(chunk.is_visual[..., None], here, x)
        trunks = []

        def attend(number, q, k, v):
            out, keys = jax.vmap(_attend_trunk)(q, k, v, cache.trunks[number], chunk)
            trunks.append(keys)
            return out

        model.language.extend(x, chunk.positions, layers, attend)
        return cache._replace(trunks=tuple(trunks))

    def _extend_branch(self, weights: Weights, cache: Cache, chunk: Chunk) -> Cache:
        model, layers = self.model.merge(weights)
        branches = []

        def attend(number, q, k, v):
            out, keys = jax.vmap(_attend_branch)(q, k, v, cache.trunks[number], cache.branches[number], chunk)
            branches.append(keys)
            return out

        model.language.extend(model.language.embed(chunk.tokens), chunk.positions, layers, attend)
        return cache._replace(branches=tuple(branches))

    def _decode(
        self, weights: Weights, cache: Cache, last: jax.Array, step: Step, draws: Draws, *, top: bool
    ) -> tuple[Cache, Chosen]:
        model, layers = self.model.merge(weights)
        shape = last.shape  # [G, B]; the layers get all branches as rows of one token
        tokens = jnp.where(step.forced >= 0, step.forced, last).reshape(-1, 1)
        positions = step.position.reshape(-1, 1)
        if (axes := self.model.config.text.rope_axes) is not None:
            positions = jnp.repeat(positions[..., None], max(axes) + 1, axis=-1)
        branches = []

        def attend(number, q, k, v):
            q, k, v = (x.reshape(*shape, *x.shape[2:]) for x in (q, k, v))
            each = jax.vmap(lambda *of_group: _attend_step(*of_group, self.lane.places))
            out, keys = each(q, k, v, cache.trunks[number], cache.branches[number], step)
            branches.append(keys)
            return out.reshape(-1, 1, *out.shape[2:])

        hidden = model.language.extend(model.language.embed(tokens), positions, layers, attend)[:, 0]
        # The logits are gathered over `tensor`; asked for whole ones at once, XLA would gather the vocabulary's weights.
        logits = constrain(constrain(hidden @ model.language.vocabulary(), "batch", "act_vocab"), "batch", None)
        chosen, logps = choose(logits, jax.tree.map(lambda x: x.reshape(-1), draws))
        rewards = jnp.zeros(logps.shape) if model.config.reward_head is None else model.reward_head(hidden)
        likeliest = None
        if top:
            values, ids = jax.lax.top_k(logits, MOST_TOP)
            values -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
            likeliest = values.reshape(*shape, -1), ids.reshape(*shape, -1)
        found = (x.reshape(shape) for x in (chosen, logps, rewards))
        return cache._replace(branches=tuple(branches)), Chosen(*found, likeliest)

    # Shapes of their arguments ---------------------------------------------------------------------------------------

    def _whole(self, *axes: str | int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        sizes = {"B": self.lane.slots, "T": self.lane.trunk}
        return jax.ShapeDtypeStruct((self.groups, *(sizes.get(axis, axis) for axis in axes)), dtype)

    def _media(self, tiles: int) -> Media:
        geometry = self.model.config.geometry
        side, taps = geometry.image_size, geometry.taps
        pixels = self._whole(tiles, side, side, 3, dtype=jnp.uint8)
        return Media(pixels, self._whole("T", taps), self._whole("T", taps, dtype=jnp.float32), self._whole(dtype=jnp.bool_))

    def _visual(self) -> jax.ShapeDtypeStruct:
        return self._whole("T", self.model.config.text.hidden_size, dtype=self.model.dtype)

    def _chunk(self, size: int) -> Chunk:
        axes = self.model.config.geometry.position_axes
        positions = self._whole(size, *((axes,) if axes > 1 else ()))
        return Chunk(self._whole(size), positions, self._whole(size, dtype=jnp.bool_), *(self._whole(),) * 5)

    def _step(self) -> Step:
        return Step(*(self._whole("B"),) * len(Step._fields))

    def _draws(self) -> Draws:
        real = (self._whole("B", dtype=jnp.float32),) * 3
        return Draws(*real, self._whole("B"), self._whole("B", dtype=jnp.uint32), self._whole("B"), self._whole("B"))


def _attend_trunk(q, k, v, trunks: Keys, chunk: Chunk):
    """A chunk of one group's trunk against the trunk so far and itself: ([e, H, D], the trunks with its keys)."""
    here = jax.tree.map(lambda all_rows: all_rows[chunk.row], trunks)
    here = _written(here, k, v, chunk)
    visible = jnp.arange(here.k.shape[1])[None] <= (chunk.start + jnp.arange(q.shape[0]))[:, None]
    part = attend_part(q[None], here.k[None], here.v[None], visible[None])
    out = (part.out / part.total[..., None])[0].astype(q.dtype)
    return out, jax.tree.map(lambda all_rows, row: all_rows.at[chunk.row].set(row, mode="drop"), trunks, here)


def _attend_branch(q, k, v, trunks: Keys, branches: Keys, chunk: Chunk):
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


def _attend_step(q, k, v, trunks: Keys, branches: Keys, step: Step, places: int):
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
