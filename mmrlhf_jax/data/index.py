"""The index: what every group takes of a row, measured once per (data, encoder) and cached beside the data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from etils import epath

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_arrays, write_arrays

Progress = Callable[[Iterable, str], Iterable]


@dataclasses.dataclass(frozen=True)
class GroupIndex:
    """`groups[g]` is the number in the data set of the g-th group that is kept, `sizes[g]` what it takes of a row."""

    sizes: np.ndarray  # int64[G, resources of Budget]
    groups: np.ndarray  # int64[G]
    first_responses: np.ndarray  # int64[N + 1]: number of each example's first response, over ALL examples; last = total
    dropped: tuple[str, ...]  # ids of groups left out, each with its reason
    fingerprint: str

    @property
    def responses(self) -> int:
        return int(self.first_responses[-1])


def build_index(
    examples, encoder: GroupEncoder, *, cache: epath.Path | None = None, progress: Progress | None = None
) -> GroupIndex:
    """Measure every group. With `cache` (a directory) the result is kept there under its fingerprint."""
    fingerprint = hashlib.sha256(f"{examples.fingerprint} {encoder.fingerprint}".encode()).hexdigest()
    stored = cache / f"index-{fingerprint[:16]}.npz" if cache is not None else None
    if stored is not None and stored.exists():
        sizes = read_arrays(stored)["sizes"]
    else:
        numbers: Iterable = range(len(examples))
        if progress is not None:
            numbers = progress(numbers, "measuring groups")
        sizes = np.stack([encoder.measure(examples[i]) for i in numbers])
        if stored is not None:
            write_arrays(stored, sizes=sizes)
    responses = sizes[:, Budget.names().index("responses")]
    return GroupIndex(
        sizes=sizes,
        groups=np.arange(len(sizes)),
        first_responses=np.concatenate([[0], np.cumsum(responses)]),
        dropped=(),
        fingerprint=fingerprint,
    )


def within_budget(index: GroupIndex, examples, budget: Budget, policy: str) -> GroupIndex:
    """Apply the over-budget policy: "error" names the first group, "drop" leaves such groups out and lists them."""
    over = (index.sizes > budget.vector).any(axis=1)
    if not over.any():
        return index
    reasons = []
    for g in np.flatnonzero(over):
        sizes = dict(zip(Budget.names(), zip(index.sizes[g], budget.vector, strict=True), strict=True))
        what = ", ".join(f"{size} {name} > {limit}" for name, (size, limit) in sizes.items() if size > limit)
        reasons.append(f"{examples.records[index.groups[g]].id}: {what}")
    if policy == "error":
        raise UserError(
            f"{over.sum()} of {len(over)} groups exceed the row budget, the first is {reasons[0]};"
            " raise `batch.slots` (or the budget named), or set `data.over_budget: drop`"
        )
    if over.all():
        raise UserError(f"no group fits the row budget; the first is {reasons[0]}")
    return dataclasses.replace(
        index, sizes=index.sizes[~over], groups=index.groups[~over], dropped=index.dropped + tuple(reasons)
    )


def keep_groups(index: GroupIndex, keep: np.ndarray, why: str, examples) -> GroupIndex:
    """Leave out groups (bool[G] False) and list them with the reason."""
    dropped = tuple(f"{examples.records[g].id}: {why}" for g in index.groups[~keep])
    return dataclasses.replace(index, sizes=index.sizes[keep], groups=index.groups[keep], dropped=index.dropped + dropped)
