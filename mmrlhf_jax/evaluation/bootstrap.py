"""Intervals by resampling prompts, since the pairs of one prompt are not independent of each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL, DRAWS = 0.95, 4000


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of sum(numerators) / sum(denominators) over resampled groups; NaN without any group.

    `numerators[g]` and `denominators[g]` are those of group g, for example its right pairs and its pairs.
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    if not below.sum():
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found = np.empty(draws)
    for first in range(0, draws, 500):  # not all at once: a benchmark has thousands of groups
        chosen = rng.integers(0, len(above), (min(500, draws - first), len(above)))
        total = below[chosen].sum(axis=1)
        found[first : first + len(chosen)] = np.divide(
            above[chosen].sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
        )
    tail = (1 - level) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(low), float(high)
