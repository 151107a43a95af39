"""Host batches to device batches: each process gives its rows, the mesh sees one global batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.sharding.mesh import batch_sharding


def feed(batches: Iterable[RowBatch], mesh: Mesh) -> Iterator[RowBatch]:
    """Put each batch on the mesh one ahead of its use, so that the copy overlaps the step before."""
    ahead = None
    for batch in batches:
        placed = place(batch, mesh)
        if ahead is not None:
            yield ahead
        ahead = placed
    if ahead is not None:
        yield ahead


def place(batch: RowBatch, mesh: Mesh) -> RowBatch:
    """Rows over the batch axes of the mesh; this process's rows are its part of the global batch."""

    def put(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(batch_sharding(mesh, x.ndim), x)

    return jax.tree.map(put, batch)


def host() -> dict[str, int]:
    """Which rows of a global batch this process feeds, for `data.stream.batches`."""
    return {"host": jax.process_index(), "hosts": jax.process_count()}


def fetch(x: jax.Array) -> np.ndarray:
    """A whole (perhaps multi-process) array on this host."""
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils  # only where there are several processes

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
