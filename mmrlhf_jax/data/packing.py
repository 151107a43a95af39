"""The planner packs groups into rows, a whole epoch at a time, under the budgets of all resources.

A plan is a pure function of (sizes, budget, seed, epoch), so every host finds the same row t of an epoch. All arithmetic is on
integers, because hosts whose floating point rounds differently must not plan different rows.
"""

from __future__ import annotations

import numpy as np

# Increment it when the same arguments give another plan; runs planned by another version are not continued.
VERSION = 2
# A row is filled from the next so many groups of the epoch's random order: enough for a good fit, and few enough that the
# groups of a row are determined by chance and not by their size.
POOL = 128
# How many fillings are tried for a row; the one that leaves the fewest slots unused is taken.
TRIES = 8
# `_largest_first` packs groups window by window, and carries over the emptiest rows of each window.
WINDOW = 256
CARRIED_ROWS = 64
# Shares of a budget are integers out of this.
_WHOLE = 1 << 20


def plan_rows(sizes: np.ndarray, budget: np.ndarray, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Pack groups into rows.

    `sizes` is int64[G, resources], slots first, each group within `budget` (int64[resources]). Returns for each row the int32
    indices of its groups. Every group is in exactly one row. The order of groups and of rows is drawn from (seed, epoch).
    ValueError if a group exceeds the budget.

    Two algorithms are run, and the plan with fewer rows is returned. Row by row is better if a row holds several groups or if
    resources compete (videos need tiles, images slots); largest first is better if most groups are about half a row.
    """
    if len(sizes) and (sizes > budget).any():
        raise ValueError("a group exceeds the budget; apply the over-budget policy before planning")
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
    rows = min(_row_by_row(sizes, budget, order), _largest_first(sizes, budget, order), key=len)
    return [np.asarray(rows[i], np.int32) for i in rng.permutation(len(rows))]


def _row_by_row(sizes: np.ndarray, budget: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Each row has the first group of the pool, and the groups of the pool that fit best with it."""
    shares = sizes * _WHOLE // np.maximum(budget, 1)
    pool, taken = order[:POOL], POOL
    rows = []
    while len(pool):
        chosen = _fill_row(sizes[pool], shares[pool], budget)
        rows.append(pool[chosen])
        pool = np.concatenate([np.delete(pool, chosen), order[taken : taken + len(chosen)]])
        taken += len(chosen)
    return rows


def _fill_row(sizes: np.ndarray, shares: np.ndarray, budget: np.ndarray) -> list[int]:
    """Indices in the pool of the groups of one row, which include the pool's first.

    Each try has another second group, from the largest that fits to the smallest. Further groups are those with the largest
    scalar product of their shares of the budgets with the row's free shares, so that abundant resources are used first.
    """
    fits = (sizes <= budget - sizes[0]).all(axis=1)
    fits[0] = False
    seconds = np.flatnonzero(fits)
    if not len(seconds):
        return [0]
    seconds = seconds[np.argsort(-sizes[seconds, 0], kind="stable")]
    tries = min(TRIES, len(seconds))
    added = seconds[np.arange(tries) * len(seconds) // tries]
    chosen = [[0, int(group)] for group in added]
    free = budget - sizes[0] - sizes[added]
    free_shares = _WHOLE - shares[0] - shares[added]
    open_ = np.repeat(fits[None], tries, axis=0)
    open_[np.arange(tries), added] = False
    while True:
        open_ &= (sizes <= free[:, None]).all(axis=2)
        growing = np.flatnonzero(open_.any(axis=1))
        if not len(growing):
            return chosen[int(np.argmin(free[:, 0]))]
        scores = np.where(open_, free_shares @ shares.T, -1)
        added = np.argmax(scores, axis=1)[growing]
        for row, group in zip(growing, added, strict=True):
            chosen[row].append(int(group))
        free[growing] -= sizes[added]
        free_shares[growing] -= shares[added]
        open_[growing, added] = False


def _largest_first(sizes: np.ndarray, budget: np.ndarray, order: np.ndarray) -> list[list[int]]:
    """Best-fit decreasing within windows: the largest group first, each into the fullest row that has room for it."""
    done: list[list[int]] = []
    rows: list[list[int]] = []  # rows that may still get groups
    free = np.zeros((0, len(budget)), np.int64)
    for start in range(0, len(order), WINDOW):
        window = order[start : start + WINDOW]
        window = window[np.argsort(-sizes[window, 0], kind="stable")]
        used = len(rows)
        free = np.concatenate([free, np.tile(budget, (len(window), 1))])
        for group in window:
            size = sizes[group]
            fits = (free[:used] >= size).all(axis=1)
            if fits.any():
                row = int(np.argmin(np.where(fits, free[:used, 0], np.iinfo(np.int64).max)))
            else:
                row, used = used, used + 1
                rows.append([])
            rows[row].append(int(group))
            free[row] -= size
        emptiest = np.argsort(-free[:used, 0], kind="stable")
        done += [rows[i] for i in emptiest[CARRIED_ROWS:]]
        rows = [rows[i] for i in emptiest[:CARRIED_ROWS]]
        free = free[emptiest[:CARRIED_ROWS]]
    return done + rows


def epoch_groups(count: int, weights: np.ndarray | None, *, seed: int, epoch: int) -> np.ndarray:
    """The groups of an epoch, int64[n] ascending, out of `count`; a group of weight w occurs about w times.

    In the first e epochs group g occurs floor(e * w + phase) times, with phases spread evenly over the groups. So with weight 1
    every group occurs once per epoch, with 2 twice, and with 0.5 in exactly one of two successive epochs.
    """
    if weights is None:
        return np.arange(count)
    phases = (np.random.default_rng((seed, count)).permutation(count) + 0.5) / max(count, 1)
    times = np.floor((epoch + 1) * weights + phases) - np.floor(epoch * weights + phases)
    return np.repeat(np.arange(count), times.astype(np.int64))


def fill(sizes: np.ndarray, rows: list[np.ndarray], slots: int) -> float:
    """The share of slots that hold tokens."""
    return float(sizes[:, 0].sum() / (len(rows) * slots)) if rows else 0.0


# Factors by which derived budgets exceed the data's mean ratio to slots, in the order of `Budget`, because rows differ from the
# mean. More slack costs compute (tiles, targets) or memory (visual slots); with less, rows with many videos reach another
# budget long before their slots are full.
SLACK = np.asarray([1.0, 1.25, 1.25, 1.5, 2.0, 2.0])
# Budgets are rounded up to multiples of these, to fill chunks and vector lanes.
MULTIPLES = np.asarray([1, 1, 128, 128, 8, 8])


def auto_budget(sizes: np.ndarray, slots: int) -> np.ndarray:
    """Budgets, int64[resources], for a row of `slots`: the data's mean ratio to slots, times SLACK.

    They are at least what any single group needs plus half of what average groups would need in its remaining slots, so that a
    row with the longest video still has room for image groups (smaller ones than average).
    """
    ratio = sizes.sum(axis=0) / max(sizes[:, 0].sum(), 1)
    beside = np.maximum(slots - sizes[:, :1], 0) * ratio / 2
    wanted = np.maximum(slots * ratio * SLACK, (sizes + beside).max(axis=0, initial=0))
    budget = _round_up(np.ceil(wanted.round(6)).astype(np.int64))
    budget[0] = slots
    budget[3:] = np.maximum(budget[3:], MULTIPLES[3:])  # arrays of targets, responses and pairs must not be empty
    return budget


def wide_enough(budget: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`budget`, raised in every resource of which a single one of these groups (int64[G, resources]) needs more."""
    largest = sizes.max(axis=0, initial=0)
    return np.where(largest > budget, _round_up(largest), budget)


def _round_up(budget: np.ndarray) -> np.ndarray:
    return -(-budget // MULTIPLES) * MULTIPLES
