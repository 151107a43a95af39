"""The index: the size of every group, measured once per (data, encoder) and cached beside the data."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.processes import spawn_pool
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.faults import Unavailable, reason
from mmrlhf_jax.files import read_sound_arrays, write_arrays
from mmrlhf_jax.progress import say

Progress = Callable[[Iterable, str, int], Iterable]

# Version of the measurement, part of the fingerprint. Increment it when `GroupEncoder.measure` gives other sizes; runs made
# with the old version are then not continued.
VERSION = 1
# Version of the cache files only. Increment it when sizes change only for groups that no earlier run could contain, so that the
# fingerprint, by which runs are recognised, stays the same. 2: media inside the text.
KEPT = 2

# Starting processes takes seconds; for fewer groups a single process is faster.
PARALLEL_GROUPS = 4096
_CHUNK = 128


@dataclasses.dataclass(frozen=True)
class GroupIndex:
    """`groups[g]` is the number in the data set of the g-th kept group, `sizes[g]` its size in each resource of a row."""

    sizes: np.ndarray  # int64[G, resources of Budget]
    groups: np.ndarray  # int64[G]
    first_responses: np.ndarray  # int64[N + 1]: number of each example's first response, over ALL examples; last = total
    dropped: tuple[str, ...]  # ids of groups left out, each with its reason
    fingerprint: str
    limits: np.ndarray  # int64[G, fields of Limit]: limits set by an over-budget policy; 0 = none
    cut: tuple[str, ...] = ()  # ids of groups that were made smaller, each with what was done
    weights: np.ndarray | None = None  # float64[G]: how often an epoch contains each group; None = once

    @property
    def responses(self) -> int:
        return int(self.first_responses[-1])

    def keep(self, keep: np.ndarray, dropped: Iterable[str]) -> GroupIndex:
        """Leave out the groups where `keep`, bool[G], is False; `dropped` gives an id with a reason for each."""
        return dataclasses.replace(
            self,
            sizes=self.sizes[keep],
            groups=self.groups[keep],
            limits=self.limits[keep],
            weights=None if self.weights is None else self.weights[keep],
            dropped=(*self.dropped, *dropped),
        )


def build_index(
    examples: Any,
    encoder: GroupEncoder,
    *,
    cache: epath.Path | None = None,
    progress: Progress | None = None,
    jobs: int | None = None,
) -> GroupIndex:
    """Measure every group with `jobs` processes (None: one per core). `cache` is a directory for the result, or None."""
    measured = f"{VERSION} {' '.join(Budget.names())}"
    fingerprint = hashlib.sha256(f"{examples.fingerprint} {encoder.fingerprint} {measured}".encode()).hexdigest()
    stored = cache / f"index-{fingerprint[:16]}-{KEPT}.npz" if cache is not None else None
    sizes = None if stored is None else _read(stored, [len(record.responses) for record in examples.records])
    if sizes is None:
        found: Iterable[np.ndarray] = measure_all(examples, encoder, jobs)
        if progress is not None:
            found = progress(found, "measuring groups", len(examples))
        sizes = np.stack(list(found))
        if stored is not None:
            _keep(stored, sizes)
    responses = sizes[:, Budget.names().index("responses")]
    return GroupIndex(
        sizes=sizes,
        groups=np.arange(len(sizes)),
        first_responses=np.concatenate([[0], np.cumsum(responses)]),
        dropped=(),
        fingerprint=fingerprint,
        limits=np.zeros((len(sizes), 2), np.int64),
        weights=examples.weights,
    )


def _read(stored: epath.Path, responses: list[int]) -> np.ndarray | None:
    """The cached sizes; None if there are none, or if their numbers of responses do not match `responses`."""
    found = read_sound_arrays(stored)
    sizes = None if found is None else found.get("sizes")
    if sizes is None or sizes.shape != (len(responses), len(Budget.names())):
        return None
    return sizes if (sizes[:, Budget.names().index("responses")] == responses).all() else None


def _keep(stored: epath.Path, sizes: np.ndarray) -> None:
    try:
        write_arrays(stored, sizes=sizes)
    except (OSError, Unavailable) as error:  # built data sets are often mounted read-only
        say(f"{stored.parent}: the index cannot be kept there ({reason(error)}) and is made anew every time")


def measure_all(examples: Any, encoder: GroupEncoder, jobs: int | None = None) -> Iterator[np.ndarray]:
    """Yield the size of each group, int64[resources of `Budget`], in order."""
    jobs = os.cpu_count() or 1 if jobs is None else jobs
    if jobs == 1 or len(examples) < PARALLEL_GROUPS:
        yield from (encoder.measure(record, examples.layout(i)) for i, record in enumerate(examples.records))
        return
    with spawn_pool(jobs, _adopt_encoder, encoder) as pool:
        # Processes get chunks of records and layouts, so that they need neither the data set nor its media.
        for sizes in pool.map(_measure, _chunks(examples)):
            yield from sizes


def _chunks(examples: Any) -> Iterator[list[tuple[Any, Any]]]:
    for start in range(0, len(examples), _CHUNK):
        yield [(examples.records[i], examples.layout(i)) for i in range(start, min(start + _CHUNK, len(examples)))]


_encoder: GroupEncoder | None = None


def _adopt_encoder(encoder: GroupEncoder) -> None:
    global _encoder
    _encoder = encoder


def _measure(chunk: list[tuple[Any, Any]]) -> list[np.ndarray]:
    return [_encoder.measure(record, layout) for record, layout in chunk]


def beyond_positions(sizes: np.ndarray, groups: Sequence[int], examples: Any, encoder: GroupEncoder) -> np.ndarray:
    """int64[G]: the tokens of each group's longest conversation if it exceeds the encoder's `max_positions`, otherwise 0.

    `sizes` and `groups` are those of a `GroupIndex`. Computed from them after the index was read, because the index is cached
    for all models with the same tokens, whatever their positions.
    """
    found = np.zeros(len(sizes), np.int64)
    if encoder.max_positions is None:
        return found
    slots = sizes[:, Budget.names().index("slots")]
    for g in np.flatnonzero(slots > encoder.max_positions):
        number = int(groups[g])
        found[g] = encoder.beyond_positions(examples.records[number], examples.layout(number), int(slots[g]))
    return found


def keep_groups(index: GroupIndex, keep: np.ndarray, why: str, examples: Any) -> GroupIndex:
    """Leave out the groups where `keep`, bool[G], is False, and list them with the reason `why`."""
    return index.keep(keep, (f"{examples.records[g].id}: {why}" for g in index.groups[~keep]))
