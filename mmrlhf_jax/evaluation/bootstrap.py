"""Intervals by resampling prompts, since the pairs of one prompt are not independent of each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrlhf_jax.intervals import LEVEL, percentile_interval

DRAWS = 4000


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of sum(numerators) / sum(denominators) over resampled groups; NaN without any group.

    `numerators[g]` and `denominators[g]` are those of group g, for example its right pairs and its pairs.
    """
    if not np.sum(denominators):
        return float("nan"), float("nan")
    return percentile_interval(_resampled(numerators, denominators, draws, np.random.default_rng(seed)), level)


def mean_ratio_interval(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean over `groups` of sum(numerators) / sum(denominators), each group resampled in itself;
    NaN if a group has no denominator."""
    if any(not np.sum(below) for _, below in groups):
        return float("nan"), float("nan")
    found = np.mean([_resampled(*each, draws, np.random.default_rng((seed, n))) for n, each in enumerate(groups)], axis=0)
    return percentile_interval(found, level)


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
