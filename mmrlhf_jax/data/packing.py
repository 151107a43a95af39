"""The planner: group sizes to rows, for a whole epoch at once, under every budget at once.

A plan is a pure function of (sizes, budget, seed, epoch), so row t of an epoch can be found by its number on any host. All
arithmetic is on integers: machines whose floating point rounds differently must not plan different rows.
"""

from __future__ import annotations

import numpy as np

# Counts the changes of what is planned from the same arguments: a run that was planned by another version is not continued.
VERSION = 2
# A row is filled from the next so many groups of the epoch's random order: enough to find a good fit among, few enough that
# which groups share a row is chance, not size.
POOL = 128
# Ways of filling a row that are tried; the one that leaves the fewest slots is taken.
TRIES = 8
# The other way of planning packs largest first, window by window, and carries over the emptiest rows of each.
WINDOW = 256
CARRIED_ROWS = 64
# Shares of a budget, in integers.
_WHOLE = 1 << 20


def plan_rows(sizes: np.ndarray, budget: np.ndarray, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Pack groups into rows.

    sizes: int64[G, resources], slots first, each row within `budget` (int64[resources]); returns, per packed row, the int32
    numbers of its groups. Every group is in exactly one row. Groups come in an order drawn from (seed, epoch), and so do the
    rows.

    Planned in two ways, of which the one with fewer rows counts: row by row wins where a row holds several groups or where
    resources compete (videos take tiles, pictures slots), largest first where most groups are about half a row.
    """
    if len(sizes) and (sizes > budget).any():
        raise ValueError("a group exceeds the budget; apply the over-budget policy before planning")
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
    rows = min(_row_by_row(sizes, budget, order), _largest_first(sizes, budget, order), key=len)
    return [np.asarray(rows[i], np.int32) for i in rng.permutation(len(rows))]


def _row_by_row(sizes: np.ndarray, budget: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """Each row is the group that has waited longest, and those of the pool that go best with it."""
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
    """Numbers in the pool of the groups of one row, the pool's first among them.

    The second group is a different one in each try, from the largest that fits to the smallest. Further ones are those that
    need most of what is left most of: the largest scalar product of their shares of the budgets with the row's free shares.
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
    """Window by window, the largest group first, each into the fullest row that it fits."""
    done: list[list[int]] = []
    rows: list[list[int]] = []  # open ones
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
    """Which of `count` groups an epoch sees, int64[n] ascending, a group of weight w about w times.

    Over any number of epochs e, group g is seen floor(e * w + phase) times; phases are spread evenly over the groups. So a
    weight of 1 is every group once, 2 twice, and 0.5 every group in exactly one of two successive epochs.
    """
    if weights is None:
        return np.arange(count)
    phases = (np.random.default_rng((seed, count)).permutation(count) + 0.5) / max(count, 1)
    times = np.floor((epoch + 1) * weights + phases) - np.floor(epoch * weights + phases)
    return np.repeat(np.arange(count), times.astype(np.int64))


def fill(sizes: np.ndarray, rows: list[np.ndarray], slots: int) -> float:
    """Share of slots that hold tokens."""
    return float(sizes[:, 0].sum() / (len(rows) * slots)) if rows else 0.0


# Budgets beyond the data's own ratio to slots, in the order of `Budget`: room for rows that are not like the average. A unit of
# slack is compute (tiles, targets) or memory (visual slots) that some rows leave unused; with less, rows that are rich in
# videos are closed long before their slots are full.
SLACK = np.asarray([1.0, 1.25, 1.25, 1.5, 2.0, 2.0])
# Rounded up to these, so that chunks and lanes are whole.
MULTIPLES = np.asarray([1, 1, 128, 128, 8, 8])


def auto_budget(sizes: np.ndarray, slots: int) -> np.ndarray:
    """Budgets that go with a row of `slots`: the data's own ratio to slots with slack.

    And never less than any one group needs, with half of what average ones would in the slots that it leaves: a row that
    holds the longest video must still take pictures, and finds such as need less than the average.
    """
    ratio = sizes.sum(axis=0) / max(sizes[:, 0].sum(), 1)
    beside = np.maximum(slots - sizes[:, :1], 0) * ratio / 2
    wanted = np.maximum(slots * ratio * SLACK, (sizes + beside).max(axis=0, initial=0))
    budget = _round_up(np.ceil(wanted.round(6)).astype(np.int64))
    budget[0] = slots
    budget[3:] = np.maximum(budget[3:], MULTIPLES[3:])  # a pass without targets or pairs still has arrays of them
    return budget


def wide_enough(budget: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`budget`, or more of what one of these groups (int64[G, resources]) alone needs more of."""
    largest = sizes.max(axis=0, initial=0)
    return np.where(largest > budget, _round_up(largest), budget)


def _round_up(budget: np.ndarray) -> np.ndarray:
    return -(-budget // MULTIPLES) * MULTIPLES
