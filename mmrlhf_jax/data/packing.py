"""The planner: group sizes to rows, for a whole epoch at once, under every budget at once.

A plan is a pure function of (sizes, budget, seed, epoch), so row t of an epoch can be found by its number on any host.
"""

from __future__ import annotations

import numpy as np

# Groups are packed largest first, window by window: large ones leave gaps that small ones fill, and a row's groups still come
# from one random part of the data, not from one size.
WINDOW = 256
# Rows that a window leaves open for the next one: its emptiest.
CARRIED_ROWS = 64


def plan_rows(sizes: np.ndarray, budget: np.ndarray, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Pack groups into rows.

    sizes: int64[G, resources], each row within `budget` (int64[resources]); returns, per packed row, the int32 numbers of
    its groups. Every group is in exactly one row. Groups come in an order drawn from (seed, epoch), and so do the rows.
    """
    if len(sizes) and (sizes > budget).any():
        raise ValueError("a group exceeds the budget; apply the over-budget policy before planning")
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
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
            if fits.any():  # the fullest row that it fits
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
    done += rows
    return [np.asarray(done[i], np.int32) for i in rng.permutation(len(done))]


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


# Budgets beyond the data's own ratio to slots, in the order of `Budget`. Tiles cost compute, so they are kept tight; the
# others cost little, and without slack a row of many small groups would be closed by them long before its slots are full.
SLACK = np.asarray([1.0, 1.25, 1.25, 1.75, 2.0, 2.0])
# Rounded up to these, so that chunks and lanes are whole.
MULTIPLES = np.asarray([1, 1, 128, 128, 8, 8])


def auto_budget(sizes: np.ndarray, slots: int) -> np.ndarray:
    """Budgets that go with a row of `slots`: the data's own ratio to slots with slack, and no less than any one group."""
    ratio = sizes.sum(axis=0) / max(sizes[:, 0].sum(), 1)
    wanted = np.maximum(np.ceil(slots * ratio * SLACK), sizes.max(axis=0, initial=0)).astype(np.int64)
    budget = -(-wanted // MULTIPLES) * MULTIPLES
    budget[0] = slots
    budget[3:] = np.maximum(budget[3:], MULTIPLES[3:])  # a pass without targets or pairs still has arrays of them
    return budget
