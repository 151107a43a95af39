"""The programs of a lane: encode media, extend a trunk or a branch, move keys, and decode one token of every branch.

All have static shapes, so they are few, can be compiled ahead, and none is compiled later. Arrays have a leading axis G, one
entry per group of devices (the batch axes of the mesh): a group's branches stay with its trunks, and no call moves keys between
groups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmrlhf_jax.inference.calls import Chosen, Chunk, Copies, Media, Step
from mmrlhf_jax.inference.lane import Cache, Keys, Lane
from mmrlhf_jax.inference.lane_attention import (
    attend_branch,
    attend_step,
    attend_trunk,
    blocks,
    move_keys,
    write_step,
)
from mmrlhf_jax.inference.requests import Tree
from mmrlhf_jax.inference.sampling import Draws, choose
from mmrlhf_jax.inference.unstacked import TwoForms, Weights
from mmrlhf_jax.models import media as media_arrays
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.taps import weighted_taps
from mmrlhf_jax.sharding.mesh import batch_sharding, replicated, rows_divisor, use_mesh
from mmrlhf_jax.sharding.rules import constrain

BY_SLOT = ("taps", "weights")  # arrays of media that are laid out by the trunk's slots
MOST_TOP = 20  # log-probs of likeliest tokens that can be asked for


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
        """Compile every program: those of `names`."""
        for name in self.names(tiles=tiles, top=top):
            self.compile(name)

    def names(self, *, tiles: Sequence[int] = (), top: bool = False) -> list[str]:
        """All programs. `tiles` are the numbers of tiles for which media are encoded; `top`: also the decoding step that gives
        log-probs of the likeliest tokens."""
        return [
            *(f"trunk {size}" for size in self.lane.trunk_chunks),
            *(f"branch {size}" for size in self.lane.branch_chunks),
            "move",
            *(f"encode {count}" for count in tiles),
            "decode",
            *(["decode with logprobs"] if top else []),
        ]

    def encode(self, weights: Weights, visual: jax.Array, trees: Mapping[int, Tree]) -> jax.Array:
        """`visual`, [G, T, E], with the visual tokens of the trunks of `trees` (group -> tree); others' remain."""
        found = {group: tree.media() for group, tree in trees.items()}
        most = max(media.units for media in found.values())
        media = self._arrays(self._media(self.model.config.geometry.padded_tiles(most)))
        for group, tiles in found.items():
            self._lay_out(media, group, tiles)
        return self.compile(f"encode {media.row.pixels.shape[1]}")(weights, visual, media)

    def _lay_out(self, media: Media, group: int, found: media_arrays.Media) -> None:
        """Write the media of one trunk into the arrays, by its slots."""
        geometry = self.model.config.geometry
        row = geometry.empty(slots=self.lane.trunk, tiles=media.row.pixels.shape[1], visual=len(found.slots))
        geometry.place(row, found, slot=0, tile=0, visual=0)
        media.fresh[group] = True
        for name, values in row._asdict().items():
            if name in BY_SLOT:
                getattr(media.row, name)[group, row.slots] = values
            elif name != "slots":
                getattr(media.row, name)[group] = values

    def no_visual(self) -> jax.Array:
        """The argument `visual` before the first media."""
        shape = self._visual()
        make = jax.jit(lambda: jnp.zeros(shape.shape, shape.dtype), out_shardings=batch_sharding(self.mesh, 3))
        return make()

    def empty_chunk(self, size: int) -> Chunk:
        """A chunk without work, as NumPy arrays that can be written to."""
        return self._arrays(self._chunk(size))

    def empty_copies(self) -> Copies:
        """Copies of nothing, as NumPy arrays that can be written to."""
        copies = self._arrays(self._copies())
        copies.target[:] = self.lane.slots
        return copies

    def empty_step(self) -> tuple[Step, Draws]:
        """A step of no branch, greedy for all, as NumPy arrays that can be written to."""
        step, draws = self._arrays(self._step()), self._arrays(self._draws())
        step.forced[:], step.row[:], draws.top_p[:] = -1, self.lane.rows, 1
        step.length[:] = self.lane.branch  # beyond the last slot, so that nothing is written
        return step, draws

    def _arrays(self, shapes):
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def extend_trunk(self, weights: Weights, cache: Cache, visual: jax.Array, chunk: Chunk) -> Cache:
        size = chunk.tokens.shape[1]
        count = np.int32(blocks(chunk.start.max() + size))
        return self.compile(f"trunk {size}")(weights, cache, visual, chunk, count)

    def place(self, cache: Cache, rows: np.ndarray) -> Cache:
        """The trunks that were on their way, one of every group, in these rows [G]."""
        return self.compile("move")(cache, rows, self.empty_copies())

    def extend_branch(self, weights: Weights, cache: Cache, chunk: Chunk) -> Cache:
        count = np.int32(blocks(chunk.trunk.max()))
        return self.compile(f"branch {chunk.tokens.shape[1]}")(weights, cache, chunk, count)

    def copy(self, cache: Cache, copies: Copies) -> Cache:
        """The keys of some branches for others: those of one request have the same prompt, and it is computed once."""
        return self.compile("move")(cache, np.full(self.groups, self.lane.rows, np.int32), copies)

    def decode(
        self, weights: Weights, cache: Cache, last: jax.Array, step: Step, draws: Draws, *, top: bool = False
    ) -> tuple[Cache, Chosen]:
        """One token of every branch. `last` are the tokens that the last step chose."""
        return self.compile("decode with logprobs" if top else "decode")(weights, cache, last, step, draws)

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
        elif kind == "move":
            run = jax.jit(move_keys, donate_argnums=0, out_shardings=caches)
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
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self.mesh))
        if kind == "encode":
            return weights, *jax.tree.map(place, (self._visual(), self._media(int(size))))
        if kind == "trunk":
            return weights, self._cache, *jax.tree.map(place, (self._visual(), self._chunk(int(size)))), count
        if kind == "branch":
            return weights, self._cache, jax.tree.map(place, self._chunk(int(size))), count
        if kind == "move":
            return self._cache, *jax.tree.map(place, (self._whole(), self._copies()))
        return weights, self._cache, *jax.tree.map(place, (self._whole("B"), self._step(), self._draws()))

    def compile(self, name: str) -> Callable:
        """The program of this name, which is compiled when it is first asked for."""
        if name not in self._made:
            self._made[name] = self.lower(name).compile()
        return self._made[name]

    # What the programs compute ---------------------------------------------------------------------------------------

    def _encode(self, weights: Weights, visual: jax.Array, media: Media) -> jax.Array:
        model, _ = self.model.merge(weights)
        found = weighted_taps(model.visual_features(media.row), media.row.taps, media.row.weights)
        return constrain(jnp.where(media.fresh[:, None, None], found.astype(visual.dtype), visual), "batch", None, None)

    def _extend_trunk(self, weights: Weights, cache: Cache, visual: jax.Array, chunk: Chunk, count: jax.Array) -> Cache:
        model, layers = self.model.merge(weights)
        x = model.language.embed(chunk.tokens)
        here = jax.vmap(lambda values, start: jax.lax.dynamic_slice_in_dim(values, start, x.shape[1]))(visual, chunk.start)
        here, *deep = jnp.split(here, 1 + self.model.config.text.deepstack, axis=-1)
        x = jnp.where(chunk.is_visual[..., None], here, x)
        deep = [jnp.where(chunk.is_visual[..., None], features, 0) for features in deep]
        begun = []
        one_group = functools.partial(attend_trunk, count=count)

        def attend(number, q, k, v):
            out, keys = jax.vmap(one_group)(q, k, v, cache.begun[number], chunk)
            begun.append(keys)
            return out

        model.language.extend(x, chunk.positions, layers, attend, deep)
        return cache._replace(begun=tuple(begun))

    def _extend_branch(self, weights: Weights, cache: Cache, chunk: Chunk, count: jax.Array) -> Cache:
        model, layers = self.model.merge(weights)
        branches = []
        one_group = functools.partial(attend_branch, count=count)

        def attend(number, q, k, v):
            out, keys = jax.vmap(one_group)(q, k, v, cache.trunks[number], cache.branches[number], chunk)
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
            placed = self._cache.branches[number].k.sharding
            branches.append(write_step(cache.branches[number], Keys(k, v), step.length, placed))
            each = jax.vmap(functools.partial(attend_step, places=self.lane.places))
            return each(q, cache.trunks[number], branches[number], step).reshape(-1, 1, *q.shape[2:])

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
        row = self.model.config.geometry.empty(slots=self.lane.trunk, tiles=tiles, visual=self.lane.trunk)
        arrays = {name: self._whole(*array.shape, dtype=array.dtype) for name, array in row._asdict().items()}
        return Media(type(row)(**arrays), self._whole(dtype=jnp.bool_))

    def _visual(self) -> jax.ShapeDtypeStruct:
        text = self.model.config.text
        return self._whole("T", text.hidden_size * (1 + text.deepstack), dtype=self.model.dtype)

    def _chunk(self, size: int) -> Chunk:
        axes = self.model.config.geometry.position_axes
        positions = self._whole(size, *((axes,) if axes > 1 else ()))
        return Chunk(self._whole(size), positions, self._whole(size, dtype=jnp.bool_), *(self._whole(),) * 5)

    def _copies(self) -> Copies:
        return Copies(self._whole(), self._whole())

    def _step(self) -> Step:
        return Step(*(self._whole("B"),) * len(Step._fields))

    def _draws(self) -> Draws:
        real = (self._whole("B", dtype=jnp.float32),) * 3
        return Draws(*real, self._whole("B"), self._whole("B", dtype=jnp.uint32), self._whole("B"), self._whole("B"))
