"""The sizes of a lane, and its caches: the shapes of every program that generates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.sharding import rules
from mmrlhf_jax.sharding.mesh import rows_divisor

# Tokens that one call adds to a trunk, or to a branch. Longer texts take several calls, the last of which may be a short one.
TRUNK_CHUNKS, BRANCH_CHUNKS = (512, 128), (256, 64)


class Keys(NamedTuple):
    """Keys and values of one layer, in the layout of a product over keys: [..., K, S, D]."""

    k: Float[Array, "G N K S D"]
    v: Float[Array, "G N K S D"]


class Cache(NamedTuple):
    """Keys and values of every layer, in G groups of devices: of R trunks [G, R, K, T, D] and of B branches [G, B, K, N, D]."""

    trunks: tuple[Keys, ...]
    branches: tuple[Keys, ...]


@dataclasses.dataclass(frozen=True)
class Lane:
    """How many sequences run at a time, and how long they may be. A tree is a trunk with up to `places` branches at a time.

    Attributes:
        rows: trunks per group of devices.
        trunk: slots of a trunk.
        places: branches of a trunk that run at the same time.
        slots: branches per group of devices.
        branch: slots of a branch: the tokens of its prompt behind the trunk, and new ones.
    """

    rows: int
    trunk: int
    places: int
    slots: int
    branch: int

    def __post_init__(self) -> None:
        if self.trunk % TRUNK_CHUNKS[-1] or self.branch % BRANCH_CHUNKS[-1]:
            raise ValueError(f"{self} does not hold whole chunks")

    def bytes(self, config: TextConfig, dtype) -> int:
        """Bytes of the cache of one group of devices."""
        tokens = self.rows * self.trunk + self.slots * self.branch
        return 2 * config.layers * config.kv_heads * config.head_dim * tokens * jnp.dtype(dtype).itemsize

    def cache(self, config: TextConfig, dtype, mesh: Mesh) -> Cache:
        """A cache for this lane: heads over `tensor`, groups over the batch axes."""
        shapes = self._shapes(config, rows_divisor(mesh))
        make = jax.jit(
            lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), shapes),
            out_shardings=jax.tree.map(lambda x: sharding(x.shape, mesh), shapes),
        )
        return make()

    def abstract_cache(self, config: TextConfig, dtype, mesh: Mesh) -> Cache:
        """Shapes and shardings of `cache`."""
        shapes = self._shapes(config, rows_divisor(mesh))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding(x.shape, mesh)), shapes)

    def _shapes(self, config: TextConfig, groups: int) -> Cache:
        def of(count: int, length: int) -> tuple[Keys, ...]:
            one = jax.ShapeDtypeStruct((groups, count, config.kv_heads, length, config.head_dim), jnp.float32)
            return tuple(Keys(one, one) for _ in range(config.layers))

        return Cache(of(self.rows, self.trunk), of(self.slots, self.branch))


def sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, rules.fit(rules.spec("batch", None, "heads", None, None), shape, mesh))


def chunk_size(left: int, start: int, sizes: Sequence[int], limit: int) -> int:
    """The size of the next chunk of a text of which `left` tokens are missing and `start` are there; slots end at `limit`.

    A large chunk, if a small one less would not hold what is left; starts are multiples of the small size, so that the last
    small chunk ends within the limit.
    """
    large, small = sizes
    return large if left > large - small and start + large <= limit else small
