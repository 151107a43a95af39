"""Paired differences between variants: intervals by resampling seeds and prompts together, and which of many hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mmrlhf_jax.intervals import LEVEL, Interval, percentile_interval

DRAWS = 4000
FEWEST_SEEDS = 3  # with fewer nothing is said to hold
# Metric -> (title, factor, unit).
METRICS = {
    "right": ("share right", 100.0, "%"),
    "wins": ("win rate against the start", 100.0, "%"),
    "quality": ("quality, 1 to 5", 1.0, ""),
    "kl": ("KL from the start", 1.0, "nats"),
    "tokens": ("length", 1.0, "tokens"),
}


class Difference(NamedTuple):
    """A variant against a baseline, at one level.

    Attributes:
        value: mean over seeds and prompts of the variant's figure minus the baseline's.
        interval: its 95 % interval.
        holds: whether it differs from 0 among all comparisons of a metric (Holm's procedure at 5 %).
    """

    value: float
    interval: Interval
    holds: bool


Figures = Mapping[float, Mapping[str, np.ndarray]]  # level -> variant -> float64[seeds, prompts]
Key = tuple[float, str]  # (level, variant)


def differences(figures: Figures, baseline: str, seed: int = 0) -> dict[Key, Difference]:
    """(level, variant) -> its difference to `baseline`, for all other variants.

    For the intervals seeds and prompts are drawn with repetition, the same for all: a two-way bootstrap, because answers of one
    policy share its seed, and answers to one prompt share the prompt. Few seeds make a bootstrap bold, so that what holds is
    decided by `p_value`.
    """
    gaps = {
        (level, name): values - found[baseline]
        for level, found in figures.items()
        for name, values in found.items()
        if name != baseline
    }
    shape = next(iter(gaps.values())).shape
    rng = np.random.default_rng(seed)
    draws: dict[Key, list[float]] = {key: [] for key in gaps}
    for _ in range(DRAWS):
        seeds, prompts = (np.bincount(rng.integers(0, size, size), minlength=size) / size for size in shape)
        for key, gap in gaps.items():
            draws[key].append(seeds @ gap @ prompts)
    holding = holm({key: p_value(gap) for key, gap in gaps.items()})
    return {
        key: Difference(float(gap.mean()), percentile_interval(np.asarray(draws[key])), key in holding)
        for key, gap in gaps.items()
    }


def p_value(gap: np.ndarray) -> float:
    """The two-sided P of a mean of 0, of float64[seeds, prompts]; 1 with fewer than FEWEST_SEEDS seeds, or if all are alike.

    Seeds and prompts are two crossed random effects, so that the variance of the mean is (MS_seeds + MS_prompts − MS_rest) /
    (seeds · prompts), with Satterthwaite's degrees of freedom, which are few where seeds differ much.
    """
    seeds, prompts = gap.shape
    if seeds < FEWEST_SEEDS:
        return 1.0
    by_seed, by_prompt, mean = gap.mean(axis=1), gap.mean(axis=0), gap.mean()
    rest = gap - by_seed[:, None] - by_prompt + mean
    squares = [
        (prompts * by_seed.var(ddof=1), seeds - 1),
        (seeds * by_prompt.var(ddof=1), prompts - 1),
        ((rest**2).sum() / ((seeds - 1) * (prompts - 1)), (seeds - 1) * (prompts - 1)),
    ]
    (of_seeds, _), (of_prompts, _), (of_rest, _) = squares
    variance = max(of_seeds + of_prompts - of_rest, of_seeds, of_prompts)  # its parts cannot be negative
    if variance == 0:
        return 1.0
    freedom = variance**2 / sum(square**2 / degrees for square, degrees in squares)
    return float(2 * stats.t.sf(abs(mean) / np.sqrt(variance / gap.size), max(freedom, 1.0)))


def holm(p_values: Mapping[Key, float]) -> set[Key]:
    """The comparisons that hold together at 1 − LEVEL, by Holm's procedure."""
    found: set[Key] = set()
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > (1 - LEVEL) / (len(p_values) - place):
            break
        found.add(key)
    return found


def agreement(margins: Sequence[Sequence[float]], truly: Sequence[Sequence[int]]) -> tuple[float, float]:
    """(share of pairs that the reward model orders as the annotators did, share that it orders truly). For every record
    `margins` are those of its pairs as annotated, and `truly` is -1 for a pair that is annotated the wrong way."""
    found, signs = (np.concatenate([np.zeros(0), *map(np.asarray, values)]) for values in (margins, truly))
    return float((found > 0).mean()), float((found * signs > 0).mean())
