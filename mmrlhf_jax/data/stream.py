"""The stream from rows to batches, through Grain. Row t is a pure function of (data, encoder, budget, seed, t).

So the data position of a run is one integer, the step; hosts read only their own rows, and a run may be resumed on another
number of hosts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from functools import lru_cache

import grain
import numpy as np
from absl import flags

from mmrlhf_jax.cleanup import Cleanup
from mmrlhf_jax.data.encode import GroupEncoder, Limit
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.packing import VERSION, epoch_groups, fill, plan_rows
from mmrlhf_jax.data.rows import Budget, RowBatch, assemble_row, empty_row, stack_rows


@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows of a run by number, over any number of epochs. It is picklable, because it is sent to worker processes."""

    examples: object
    encoder: GroupEncoder
    index: GroupIndex
    budget: Budget
    seed: int
    reference_logps: np.ndarray | None = None  # float32[responses]

    def plan(self, epoch: int) -> list[np.ndarray]:
        """For each row of an epoch, the positions of its groups in the index."""
        return _plan(self, epoch)

    def once(self) -> Rows:
        """Rows whose epochs contain every group exactly once, whatever the weights of the sets."""
        return dataclasses.replace(self, index=dataclasses.replace(self.index, weights=None))

    @functools.cached_property
    def identity(self) -> str:
        """A digest of everything that determines which groups are in which row."""
        index = self.index
        digest = hashlib.sha256(f"{index.fingerprint} {self.budget} {self.seed} {VERSION}".encode())
        for array in (index.sizes, index.groups, index.limits, index.weights):
            digest.update(b"-" if array is None else array.tobytes())
        return digest.hexdigest()

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other) -> bool:
        return isinstance(other, Rows) and self.identity == other.identity

    @property
    def fill(self) -> float:
        """The share of slots that hold tokens, in the first epoch."""
        rows = self.plan(0)
        return fill(self.index.sizes[np.concatenate(rows)], rows, self.budget.slots) if rows else 0.0

    def locate(self, t: int) -> tuple[int, int]:
        """(epoch, row in the epoch) of row t."""
        epoch = 0
        while t >= (count := _epoch_rows(self, epoch)):
            t -= count
            epoch += 1
        return epoch, t

    def epochs(self, done: int) -> float:
        """The number of epochs in the first `done` rows, with the fraction of the epoch in progress."""
        epoch = 0
        while done and done >= (count := _epoch_rows(self, epoch)):
            done -= count
            epoch += 1
        return epoch + (done / _epoch_rows(self, epoch) if done else 0.0)

    def groups(self, t: int) -> np.ndarray:
        """The numbers in the data set of the groups in row t."""
        return self.index.groups[self._row(t)]

    def limited_groups(self, t: int) -> list[tuple[int, Limit]]:
        """(number in the data set, limit of an over-budget policy) of each group in row t."""
        return [(int(self.index.groups[g]), self._limit(int(g))) for g in self._row(t)]

    def row(self, t: int) -> RowBatch:
        return assemble_row([self._encoded(int(g)) for g in self._row(t)], self.budget, self.encoder.geometry)

    def _row(self, t: int) -> np.ndarray:
        epoch, row = self.locate(t)
        return self.plan(epoch)[row]

    def _limit(self, g: int) -> Limit:
        return Limit(*map(int, self.index.limits[g]))

    def _encoded(self, g: int):
        number = int(self.index.groups[g])
        first = int(self.index.first_responses[number])
        group = self.encoder.encode(self.examples[number], first, self._limit(g))
        if self.reference_logps is not None:
            group = group._replace(reference_logps=self.reference_logps[first : first + len(group.rewards)])
        return group

    def count(self, epochs: int) -> int:
        return sum(_epoch_rows(self, epoch) for epoch in range(epochs))


@lru_cache(maxsize=8)
def _plan(rows: Rows, epoch: int) -> list[np.ndarray]:
    index = rows.index
    groups = epoch_groups(len(index.groups), index.weights, seed=rows.seed, epoch=epoch)
    return [groups[row] for row in plan_rows(index.sizes[groups], rows.budget.vector, seed=rows.seed, epoch=epoch)]


@lru_cache(maxsize=65536)
def _epoch_rows(rows: Rows, epoch: int) -> int:
    return len(_plan(rows, epoch))


@dataclasses.dataclass(frozen=True)
class HostRows:
    """The rows of one host as a random-access source for Grain: its part of every global batch from step `start` on."""

    rows: Rows
    start: int
    steps: int
    batch_rows: int
    mine: tuple[int, ...]  # this host's rows of every global batch
    total: int  # number of rows of the whole run; later rows are padding rows, which fill the last batch

    def __len__(self) -> int:
        return (self.steps - self.start) * len(self.mine)

    def __getitem__(self, i: int) -> RowBatch:
        step, row = divmod(i, len(self.mine))
        t = (self.start + step) * self.batch_rows + self.mine[row]
        return self.rows.row(t) if t < self.total else empty_row(self.rows.budget, self.rows.encoder.geometry)


def batches(
    rows: Rows,
    *,
    batch_rows: int,
    steps: int,
    total: int,
    start: int = 0,
    host: int = 0,
    hosts: int = 1,
    mine: tuple[int, ...] | None = None,
    workers: int = 0,
    threads: int = 2,
) -> Iterator[RowBatch]:
    """Yield this host's part of the global batches start, start + 1, ..., steps - 1: the rows `mine` of each.

    By default `mine` is the `host`-th of `hosts` equal parts. With `workers` > 0 so many spawned processes decode and tokenise;
    otherwise `threads` threads of this process do.
    """
    if mine is None:
        local = batch_rows // hosts
        mine = tuple(range(host * local, (host + 1) * local))
    source = HostRows(rows, start, steps, batch_rows, mine, total)
    dataset = grain.MapDataset.source(source).batch(len(mine), batch_fn=stack_rows)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain's worker pool reads absl flags, which raise if they were never parsed
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(iterable)
    with Cleanup() as cleanup:
        close = getattr(iterator, "close", None)  # an iterator that is not closed keeps its threads and workers alive
        if close is not None:
            cleanup.add("the data workers", close)
        yield from iterator
