"""Paired differences between variants: intervals by resampling seeds and prompts together, and which of many hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
        baseline: what it is compared with.
        value: mean over seeds and prompts of the variant's figure minus the baseline's.
        interval: the bootstrap's 95 % interval of this comparison alone.
        p: of a mean of 0 (`mean_test`).
        needed: the size from which on `value` would be told from 0 among all of them; inf if nothing can be told.
        holds: whether it differs from 0 among all that it was computed with (Holm's procedure at 5 %).
    """

    baseline: str
    value: float
    interval: Interval
    p: float
    needed: float
    holds: bool


class MeanTest(NamedTuple):
    """Student's t-test of a mean of 0: the mean, its standard error, and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: float

    @property
    def p(self) -> float:
        """Two-sided; 1 where the error is 0, because all values are then alike, or too few."""
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.freedom)) if self.error else 1.0

    def needed(self, level: float) -> float:
        """The size that a mean must have for a P of `level`."""
        return self.error * float(stats.t.isf(level / 2, self.freedom)) if self.error else math.inf


Figures = Mapping[float, Mapping[str, np.ndarray]]  # level -> variant -> float64[seeds, prompts]
Key = tuple[float, str]  # (level, variant)


def differences(
    figures: Figures, baseline_of: Callable[[str], str | None], *, decides: bool = True, seed: int = 0, draws: int = DRAWS
) -> dict[Key, Difference]:
    """(level, variant) -> its `Difference` to the variant `baseline_of` names; variants for which that is None are left out.

    For the intervals seeds and prompts are drawn with repetition, the same for all: a two-way bootstrap, because answers of one
    policy share its seed, and answers to one prompt share the prompt. Its intervals are too wide where whole seeds differ
    little, and too narrow where they differ much, because there are few (`test_drs_study.py` measures how much). So what holds
    is decided by `mean_test`. Nothing holds unless the study `decides`, before all its seeds are there: who looks at every seed
    until something holds finds something.
    """
    baselines = {
        (level, name): baseline
        for level, found in figures.items()
        for name in found
        if (baseline := baseline_of(name)) is not None
    }
    gaps = {(level, name): figures[level][name] - figures[level][baseline] for (level, name), baseline in baselines.items()}
    rng, drawn = np.random.default_rng(seed), {key: np.empty(draws) for key in gaps}
    shape = next(iter(gaps.values())).shape
    for draw in range(draws):
        seeds, prompts = (np.bincount(rng.integers(0, size, size), minlength=size) / size for size in shape)
        for key, gap in gaps.items():
            drawn[key][draw] = seeds @ gap @ prompts
    tests = {key: mean_test(gap) for key, gap in gaps.items()}
    holding = holm({key: test.p for key, test in tests.items()}) if decides else set()
    return {
        key: Difference(
            baselines[key],
            test.mean,
            percentile_interval(drawn[key]),
            test.p,
            test.needed((1 - LEVEL) / len(tests)),
            key in holding,
        )
        for key, test in tests.items()
    }


def mean_test(gap: np.ndarray) -> MeanTest:
    """The test of a mean of 0, of float64[seeds, prompts]; with fewer than FEWEST_SEEDS seeds its error is 0: nothing can be
    told.

    Seeds and prompts are two crossed random effects, so that the variance of the mean is (MS_seeds + MS_prompts − MS_rest) /
    (seeds · prompts), with Satterthwaite's degrees of freedom, which are few where seeds differ much.
    """
    seeds, prompts = gap.shape
    by_seed, by_prompt, mean = gap.mean(axis=1), gap.mean(axis=0), float(gap.mean())
    if seeds < FEWEST_SEEDS:
        return MeanTest(mean, 0.0, 1.0)
    rest = gap - by_seed[:, None] - by_prompt + mean
    squares = [
        (prompts * by_seed.var(ddof=1), seeds - 1),
        (seeds * by_prompt.var(ddof=1), prompts - 1),
        ((rest**2).sum() / ((seeds - 1) * (prompts - 1)), (seeds - 1) * (prompts - 1)),
    ]
    (of_seeds, _), (of_prompts, _), (of_rest, _) = squares
    variance = max(of_seeds + of_prompts - of_rest, of_seeds, of_prompts)  # its parts cannot be negative
    if variance == 0:
        return MeanTest(mean, 0.0, 1.0)
    freedom = variance**2 / sum(square**2 / degrees for square, degrees in squares)
    return MeanTest(mean, float(np.sqrt(variance / gap.size)), max(float(freedom), 1.0))


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
