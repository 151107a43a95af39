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

# Tokens that one call adds to a long trunk, or to a branch. Longer texts take several calls, the last one a small one perhaps.
TRUNK_CHUNKS, BRANCH_CHUNKS = (512, 128), (256, 64)
SHORT = 256  # A trunk of a lane for at most so many tokens takes one call; such lanes have any multiple of `SHORT_UNIT` slots.
SHORT_UNIT = 32


class Keys(NamedTuple):
    """Keys and values of one layer, as they are written: those of a token lie side by side.

    Values in a cache are finite, because slots are used again, and a value that is not seen still is multiplied, by 0. Where a
    computed value is not finite, the key is NaN instead (`marked`), so that whoever sees it gets NaN.
    """

    k: Float[Array, "... K S D"]
    v: Float[Array, "... K S D"]


class TrunkKeys(NamedTuple):
    """Keys and values of whole trunks in one layer, as the product with queries reads them: every step reads all of them, and
    would have to transpose the keys."""

    k: Float[Array, "... K D S"]
    v: Float[Array, "... K S D"]


class Cache(NamedTuple):
    """Keys and values of every layer, in G groups of devices: of R trunks [G, R, ...] with T slots, of B branches [G, B, ...]
    with N slots, and of every group's trunk that is on its way, [G, ...]. That one is apart, so that a chunk changes little."""

    trunks: tuple[TrunkKeys, ...]
    branches: tuple[Keys, ...]
    begun: tuple[Keys, ...]


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
        short = self.trunk <= SHORT and self.trunk % SHORT_UNIT == 0
        if not (short or self.trunk % TRUNK_CHUNKS[-1] == 0) or self.branch % BRANCH_CHUNKS[-1]:
            raise ValueError(f"{self} does not hold whole chunks")

    @property
    def trunk_chunks(self) -> tuple[int, ...]:
        """Sizes of the calls that add to a trunk, large ones first."""
        return (self.trunk,) if self.trunk <= SHORT else tuple(size for size in TRUNK_CHUNKS if size <= self.trunk)

    @property
    def branch_chunks(self) -> tuple[int, ...]:
        """Sizes of the calls that add to the prompt of a branch, large ones first."""
        return tuple(size for size in BRANCH_CHUNKS if size <= self.branch)

    def bytes(self, config: TextConfig, dtype) -> int:
        """Bytes of the cache of one group of devices."""
        tokens = (self.rows + 1) * self.trunk + self.slots * self.branch
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
        of = lambda *shape: jax.ShapeDtypeStruct((groups, *shape), jnp.float32)
        heads, dim = config.kv_heads, config.head_dim
        trunk = TrunkKeys(of(self.rows, heads, dim, self.trunk), of(self.rows, heads, self.trunk, dim))
        branch = Keys(*(of(self.slots, heads, self.branch, dim),) * 2)
        begun = Keys(*(of(heads, self.trunk, dim),) * 2)
        return Cache(*((each,) * config.layers for each in (trunk, branch, begun)))


def sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, rules.fit(rules.spec("batch", *(None,) * (len(shape) - 4), "heads", None, None), shape, mesh))


def chunk_size(left: int, start: int, sizes: Sequence[int], limit: int) -> int:
    """The size of the next chunk of a text of which `left` tokens are missing and `start` are there; slots end at `limit`.

    A large chunk, if a small one less would not hold what is left; starts are multiples of the small size, so that the last
    small chunk ends within the limit.
    """
    large, small = sizes[0], sizes[-1]
    return large if left > large - small and start + large <= limit else small
