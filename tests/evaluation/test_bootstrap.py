"""Intervals cover what they should, and know that pairs of one prompt belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrlhf_jax.evaluation.bootstrap import ratio_interval


def test_of_independent_pairs_it_is_the_binomial_one():
    rng = np.random.default_rng(0)
    right = rng.random(800) < 0.7
    low, high = ratio_interval(right, np.ones(800))
    error = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 800)
    assert (low, high) == pytest.approx((right.mean() - error, right.mean() + error), abs=0.006)


def test_pairs_that_always_agree_count_as_one():
    rng = np.random.default_rng(1)
    right = (rng.random(100) < 0.6).astype(float)
    alone = ratio_interval(right, np.ones(100))
    groups = ratio_interval(6 * right, np.full(100, 6))
    assert groups == pytest.approx(alone)
    torn = ratio_interval(np.repeat(right, 6), np.ones(600))
    assert torn[1] - torn[0] < 0.6 * (groups[1] - groups[0])


def test_it_covers_the_truth_as_often_as_it_says():
    """200 samples of 60 groups of one to six pairs, whose pairs are right together more or less often."""
    rng, covered = np.random.default_rng(2), 0
    for sample in range(200):
        sizes = rng.integers(1, 7, 60)
        chances = rng.beta(4, 2, 60)
        right = rng.binomial(sizes, chances)
        low, high = ratio_interval(right, sizes, draws=500, seed=sample)
        covered += low <= 4 / 6 <= high
    assert 0.9 <= covered / 200 <= 0.98


def test_extremes():
    assert ratio_interval([3, 2], [3, 2]) == (1.0, 1.0)
    assert all(map(math.isnan, ratio_interval([], []))) and all(map(math.isnan, ratio_interval([0], [0])))
    assert ratio_interval([1, 0, 1], [1, 0, 2]) == ratio_interval([1, 0, 1], [1, 0, 2])
