"""Over-budget policies: groups that exceed the row budget or the model's positions are made smaller or left out; these are
counted and listed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmrlhf_jax.data.encode import NO_LIMIT, GroupEncoder, Limit
from mmrlhf_jax.data.examples import Layout
from mmrlhf_jax.data.index import GroupIndex, beyond_positions
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.records import RankedRecord

# Responses are not cut to fewer tokens than this, because such short ones cannot be compared meaningfully.
SHORTEST_RESPONSE = 16


def within_budget(
    index: GroupIndex, examples: Any, encoder: GroupEncoder, budget: Budget, policies: Sequence[str], named: str = "the data"
) -> GroupIndex:
    """Bring every group within the budget, and every conversation within the encoder's `max_positions`, trying the policies in
    their order. `named` is the data set, for messages.

    `smaller_media` uses a smaller canvas for images or fewer frames of a video, the smallest reduction that suffices.
    `cut_longest` cuts the longest responses to the greatest common length that fits, but not below SHORTEST_RESPONSE tokens. If
    both are allowed and neither suffices alone, both are applied, with the most tiles that leave room for cut responses. `drop`
    leaves the group out. `error`, or if no policy suffices: UserError that names the first group.
    """
    too_large, too_long = (
        (index.sizes > budget.vector).any(axis=1),
        beyond_positions(index.sizes, index.groups, examples, encoder) > 0,
    )
    over = too_large | too_long
    if not over.any():
        return index
    sizes, limits = index.sizes.copy(), index.limits.copy()
    keep, dropped, cut = np.ones(len(over), bool), [], []
    for g in np.flatnonzero(over):
        number = int(index.groups[g])
        record = examples.records[number]
        group = _Group(record, examples.layout(number), encoder, budget)
        why = group.excess(index.sizes[g])
        limit = _smallest_change(group, policies)
        if limit is not None:
            sizes[g], limits[g] = group.measure(limit), limit
            cut.append(f"{record.id}: {why}; {_describe(limit, index.sizes[g], sizes[g])}")
        elif "drop" in policies:
            keep[g] = False
            dropped.append(f"{record.id}: {why}")
        else:
            larger_rows = "raise `batch.slots` (or the budget named), or " if too_large[g] else ""
            raise UserError(
                f"{named}: {over.sum()} of {len(over)} groups exceed {_exceeded(too_large, too_long)};"
                f" {record.id} does not fit: {why};"
                f" {larger_rows}set `data.over_budget: drop` (or smaller_media, cut_longest)"
            )
    if not keep.any():
        raise UserError(f"{named}: no group fits {_exceeded(too_large, too_long)}; the first is {dropped[0]}")
    fingerprint = hashlib.sha256(index.fingerprint.encode() + limits.tobytes()).hexdigest() if cut else index.fingerprint
    changed = dataclasses.replace(index, sizes=sizes, limits=limits, cut=index.cut + tuple(cut), fingerprint=fingerprint)
    return changed.keep(keep, dropped)


@dataclasses.dataclass(frozen=True)
class _Group:
    record: RankedRecord
    layout: Layout
    encoder: GroupEncoder
    budget: Budget

    def measure(self, limit: Limit) -> np.ndarray:
        return self.encoder.measure(self.record, self.layout, limit)

    def smaller_media(self) -> list[int]:
        return self.encoder.geometry.smaller_media(self.layout.images, self.layout.video)

    def fits(self, limit: Limit) -> bool:
        return not self.excess(self.measure(limit), limit)

    def excess(self, size: np.ndarray, limit: Limit = NO_LIMIT) -> str:
        """What a group of this size exceeds, for messages; empty if it fits."""
        named = zip(Budget.names(), size, self.budget.vector, strict=True)
        found = [f"{have} {name} > {most}" for name, have, most in named if have > most]
        if longest := self.encoder.beyond_positions(self.record, self.layout, int(size[0]), limit):
            found.append(f"a conversation of {longest} tokens > {self.encoder.max_positions} positions")
        return ", ".join(found)


def _smallest_change(group: _Group, policies: Sequence[str]) -> Limit | None:
    """The limit set by the first policy that suffices alone, else by all policies together; None if the group cannot fit."""
    chosen = [_POLICIES[policy] for policy in policies if policy in _POLICIES]
    if len(chosen) > 1:
        chosen.append(_smaller_media_and_cut_longest)
    return next((limit for policy in chosen if (limit := policy(group)) is not None), None)


def _smaller_media(group: _Group) -> Limit | None:
    limits = (Limit(tiles=tiles) for tiles in group.smaller_media())
    return next((limit for limit in limits if group.fits(limit)), None)


def _smaller_media_and_cut_longest(group: _Group) -> Limit | None:
    limits = (_cut_longest(group, tiles) for tiles in group.smaller_media())
    return next((limit for limit in limits if limit is not None), None)


def _cut_longest(group: _Group, tiles: int = 0) -> Limit | None:
    limit = Limit(tiles=tiles)
    if not group.fits(limit._replace(targets=SHORTEST_RESPONSE)):
        return None
    low, high = SHORTEST_RESPONSE, int(group.measure(limit)[Budget.names().index("targets")])
    while low < high:  # the longest common length that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if group.fits(limit._replace(targets=middle)) else (low, middle - 1)
    return limit._replace(targets=low)


_POLICIES: dict[str, Callable[[_Group], Limit | None]] = {
    "smaller_media": _smaller_media,
    "cut_longest": _cut_longest,
}


def _exceeded(too_large: np.ndarray, too_long: np.ndarray) -> str:
    """Which limits the groups exceed, for messages; both arguments are bool[G]."""
    limits = [(too_large, "the row budget"), (too_long, "the positions of the model's rotary embeddings")]
    return " or ".join(name for exceeded, name in limits if exceeded.any())


def _describe(limit: Limit, before: np.ndarray, after: np.ndarray) -> str:
    parts = []
    if limit.tiles:
        tiles = Budget.names().index("tiles")
        parts.append(f"{before[tiles]} tiles to {after[tiles]}")
    if limit.targets:
        parts.append(f"responses cut to {limit.targets} tokens")
    return " and ".join(parts)
