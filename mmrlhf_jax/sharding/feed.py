"""Host batches to device batches: each process reads the rows that its devices hold; together they form one global array."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mmrlhf_jax.sharding.mesh import batch_sharding, replicated, rows_divisor

Batch = TypeVar("Batch")  # a tree of arrays whose first axis is the rows


def feed(batches: Iterable[Batch], mesh: Mesh) -> Iterator[Batch]:
    """Yield global batches on the mesh. Each is copied to the devices one batch ahead, while the previous step runs."""
    ahead = None
    for batch in batches:
        placed = place(batch, mesh)
        if ahead is not None:
            yield ahead
        ahead = placed
    if ahead is not None:
        yield ahead


def fetched(results: Iterable[Any]) -> Iterator[Any]:
    """Yield each result (a tree of arrays) as host arrays, in order, read after the next result has been dispatched.

    So the devices are busy while the host waits and reads, with at most two batches in flight.
    """
    running = None
    for result in results:
        if running is not None:
            yield jax.tree.map(fetch, running)
        running = result
    if running is not None:
        yield jax.tree.map(fetch, running)


def whole(results: Any, mesh: Mesh) -> Any:
    """The tree of arrays replicated over the mesh, so that every process can read it later without a collective, which would be
    queued behind later steps."""
    return results if jax.process_count() == 1 else _whole(replicated(mesh))(results)


@functools.cache
def _whole(sharding: NamedSharding):
    return jax.jit(lambda results: results, out_shardings=sharding)


def own_rows(mesh: Mesh, batch_rows: int) -> tuple[int, ...]:
    """The indices of the rows of a global batch that this process's devices hold, ascending.

    If devices of several hosts share a row (`tensor` or `context` across hosts), each of these hosts reads it.
    """
    places = batch_sharding(mesh, 1).addressable_devices_indices_map((batch_rows,))
    return tuple(sorted({row for (part,) in places.values() for row in range(*part.indices(batch_rows))}))


def place(batch: Batch, mesh: Mesh) -> Batch:
    """The global batch, sharded by row over the batch axes of the mesh, from this process's `own_rows` in `batch`."""
    shards = rows_divisor(mesh)
    here = len(own_rows(mesh, shards))  # batch shards on this process
    batch_rows = len(jax.tree.leaves(batch)[0]) // here * shards
    position = {row: i for i, row in enumerate(own_rows(mesh, batch_rows))}

    def put(x: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            rows = range(*index[0].indices(batch_rows))
            return x[position[rows[0]] : position[rows[-1]] + 1]

        return jax.make_array_from_callback((batch_rows, *x.shape[1:]), batch_sharding(mesh, x.ndim), shard)

    return jax.tree.map(put, batch)


def fetch(x: jax.Array) -> np.ndarray:
    """The whole array on this host; a collective (all-gather) if other processes hold parts of it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils  # imported only if there are several processes

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
