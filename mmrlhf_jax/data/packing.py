"""The planner: group sizes to rows, for a whole epoch at once, under every budget at once.

A plan is a pure function of (sizes, budget, seed, epoch), so row t of an epoch can be found by its number on any host.
"""

from __future__ import annotations

import numpy as np

# How many rows are open at a time. More fills better and costs time; a group goes into the fullest row that it fits.
OPEN_ROWS = 128


def plan_rows(sizes: np.ndarray, budget: np.ndarray, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Pack groups into rows.

    sizes: int64[G, resources], each row within `budget` (int64[resources]); returns, per packed row, the int32 numbers of
    its groups. Every group is in exactly one row. Groups come in an order drawn from (seed, epoch), and so do the rows.
    """
    if len(sizes) and (sizes > budget).any():
        raise ValueError("a group exceeds the budget; apply the over-budget policy before planning")
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
    free = np.zeros((OPEN_ROWS, len(budget)), np.int64)
    rows: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
    used = 0
    done: list[np.ndarray] = []
    for group in order:
        size = sizes[group]
        fits = (free[:used] >= size).all(axis=1) if used else np.zeros(0, bool)
        if fits.any():
            row = int(np.argmin(np.where(fits, free[:used, 0], np.iinfo(np.int64).max)))
        elif used < OPEN_ROWS:
            row, used = used, used + 1
            free[row] = budget
        else:  # the fullest open row is closed to make room
            row = int(np.argmin(free[:, 0]))
            done.append(np.asarray(rows[row], np.int32))
            rows[row] = []
            free[row] = budget
        rows[row].append(int(group))
        free[row] -= size
    done += [np.asarray(row, np.int32) for row in rows if row]
    return [done[i] for i in rng.permutation(len(done))]


def fill(sizes: np.ndarray, rows: list[np.ndarray], slots: int) -> float:
    """Share of slots that hold tokens."""
    return float(sizes[:, 0].sum() / (len(rows) * slots)) if rows else 0.0


def auto_budget(sizes: np.ndarray, slots: int) -> np.ndarray:
    """Budgets that go with a row of `slots`: the data's own ratio to slots plus a quarter, and no less than any one group.

    A little slack keeps the other resources from closing rows before their slots are full. Rounded up to multiples of 8
    (of 128 for targets and visual slots, so that chunks and lanes are whole).
    """
    ratio = sizes.sum(axis=0) / max(sizes[:, 0].sum(), 1)
    wanted = np.maximum(np.ceil(slots * ratio * 1.25), sizes.max(axis=0, initial=0)).astype(np.int64)
    multiple = np.asarray([1, 1, 128, 128, 8, 8])
    budget = -(-wanted // multiple) * multiple
    budget[0] = slots
    budget[5] = max(budget[5], 1)
    return budget
