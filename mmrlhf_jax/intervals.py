"""Percentile intervals of figures that a bootstrap has drawn again."""

from __future__ import annotations

import numpy as np

LEVEL = 0.95

Interval = tuple[float, float]


def percentile_interval(draws: np.ndarray, level: float = LEVEL) -> Interval:
    """The ends between which the share `level` of the draws lies, with equal tails. Draws that are NaN do not count."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)
