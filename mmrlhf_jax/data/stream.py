"""The stream: rows to batches, through Grain. Row t is a pure function of (data, encoder, budget, seed, t).

So the position of a run is one integer, the step; hosts read only their rows, and their number may change between runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import lru_cache

import grain
import numpy as np
from absl import flags

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import GroupIndex
from mmrlhf_jax.data.packing import fill, plan_rows
from mmrlhf_jax.data.rows import Budget, RowBatch, assemble_row, empty_row, stack_rows


@dataclasses.dataclass(frozen=True)
class Rows:
    """All rows of a run by number, over as many epochs as are asked for. Picklable: it crosses into worker processes."""

    examples: object
    encoder: GroupEncoder
    index: GroupIndex
    budget: Budget
    seed: int
    reference_logps: np.ndarray | None = None  # float32[responses]

    def plan(self, epoch: int) -> list[np.ndarray]:
        return _plan(self, epoch)

    def __hash__(self) -> int:
        return hash((self.index.fingerprint, len(self.index.groups), self.budget, self.seed))

    def __eq__(self, other) -> bool:
        return isinstance(other, Rows) and hash(self) == hash(other)

    @property
    def fill(self) -> float:
        """Share of slots that hold tokens, in the first epoch."""
        return fill(self.index.sizes, self.plan(0), self.budget.slots)

    def locate(self, t: int) -> tuple[int, int]:
        """(epoch, row in the epoch) of row t."""
        epoch = 0
        while t >= len(self.plan(epoch)):
            t -= len(self.plan(epoch))
            epoch += 1
        return epoch, t

    def groups(self, t: int) -> np.ndarray:
        """Numbers in the data set of the groups in row t."""
        epoch, row = self.locate(t)
        return self.index.groups[self.plan(epoch)[row]]

    def row(self, t: int) -> RowBatch:
        encoded = [self._encoded(int(i)) for i in self.groups(t)]
        return assemble_row(encoded, self.budget, self.encoder.geometry)

    def _encoded(self, number: int):
        first = int(self.index.first_responses[number])
        group = self.encoder.encode(self.examples[number], first)
        if self.reference_logps is not None:
            group = group._replace(reference_logps=self.reference_logps[first : first + len(group.rewards)])
        return group

    def count(self, epochs: int) -> int:
        return sum(len(self.plan(epoch)) for epoch in range(epochs))


@lru_cache(maxsize=8)
def _plan(rows: Rows, epoch: int) -> list[np.ndarray]:
    return plan_rows(rows.index.sizes, rows.budget.vector, seed=rows.seed, epoch=epoch)


@dataclasses.dataclass(frozen=True)
class HostRows:
    """The rows one host feeds, as a random-access source: its share of every global batch from step `start` on."""

    rows: Rows
    start: int
    steps: int
    batch_rows: int
    mine: tuple[int, ...]  # which rows of every global batch are this host's
    total: int  # rows of the whole run; numbers from there on are empty rows, to fill the last batch

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
    """This host's part of the global batches start, start + 1, ..., steps - 1: the rows `mine` of each.

    Without `mine` they are the `host`-th of `hosts` equal parts.

    `workers` > 0 decodes and tokenises in that many spawned processes; otherwise `threads` threads of this one do.
    """
    if mine is None:
        local = batch_rows // hosts
        mine = tuple(range(host * local, (host + 1) * local))
    source = HostRows(rows, start, steps, batch_rows, mine, total)
    dataset = grain.MapDataset.source(source).batch(len(mine), batch_fn=stack_rows)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain's worker pool reads absl flags, which no command line of ours parses
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(iterable)
    try:
        yield from iterator
    finally:
        close = getattr(iterator, "close", None)  # an abandoned iterator would keep its threads and workers alive
        if close is not None:
            close()
