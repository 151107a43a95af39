"""Intervals of figures: percentiles of what a bootstrap has drawn again, and of a share by its effective number of trials.

Pairs of one prompt share responses and are right or wrong together, so that prompts are what is drawn or counted, not pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
DRAWS = 4000

Interval = tuple[float, float]


def percentile_interval(draws: np.ndarray, level: float = LEVEL) -> Interval:
    """The ends between which the share `level` of the draws lies, with equal tails. Draws that are NaN do not count."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The percentile interval of sum(numerators) / sum(denominators) over resampled groups; NaN without any group.

    `numerators[g]` and `denominators[g]` are those of group g, for example its right pairs and its pairs.
    """
    if not np.sum(denominators):
        return float("nan"), float("nan")
    return percentile_interval(_resampled(numerators, denominators, draws, np.random.default_rng(seed)), level)


def mean_ratio_interval(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The percentile interval of the mean over `groups` of sum(numerators) / sum(denominators), each group resampled in itself;
    NaN if a group has no denominator."""
    if any(not np.sum(below) for _, below in groups):
        return float("nan"), float("nan")
    found = np.mean([_resampled(*each, draws, np.random.default_rng((seed, n))) for n, each in enumerate(groups)], axis=0)
    return percentile_interval(found, level)


def share_interval(wins: Sequence[float], trials: Sequence[float], level: float = LEVEL) -> Interval:
    """Wilson's interval of the share sum(wins) / sum(trials) for the effective number of trials; `wins[g]` and `trials[g]`, of
    which some is above 0, are those of group g. Unlike a bootstrap it has a width where all trials are won or none.

    The effective number is share·(1 − share) / variance, the variance that of a ratio of sums over groups, and at most all
    trials (Korn and Graubard, Survey Methodology 24, 1998). Where the variance is 0 it is the number of groups.
    """
    won, tried = np.asarray(wins, np.float64), np.asarray(trials, np.float64)
    won, tried = won[tried > 0], tried[tried > 0]
    groups, count = len(tried), float(tried.sum())
    share = float(won.sum()) / count
    variance = groups / max(groups - 1, 1) * float(((won - share * tried) ** 2).sum()) / count**2
    effective = min(share * (1 - share) / variance, count) if groups > 1 and variance > 0 else float(groups)
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * math.sqrt(share * (1 - share) / effective + z * z / (4 * effective**2))
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def _resampled(numerators: Sequence[float], denominators: Sequence[float], draws: int, rng: np.random.Generator) -> np.ndarray:
    """float[draws]: the ratio of as many groups as there are, drawn with repetition; NaN where they have no denominator."""
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    found = np.empty(draws)
    for first in range(0, draws, 500):  # not all at once: a benchmark has thousands of groups
        chosen = rng.integers(0, len(above), (min(500, draws - first), len(above)))
        total = below[chosen].sum(axis=1)
        found[first : first + len(chosen)] = np.divide(
            above[chosen].sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
        )
    return found
