"""Intervals cover what they should, and know that pairs of one prompt belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrlhf_jax.intervals import ratio_interval, share_interval


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


# --- The share of groups' trials that are won ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_single_trials_have_wilsons_interval_as_newcombe_tabulates_it(wins, count, low, high):
    """R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3. A variance from groups of one trial each is
    larger by count / (count - 1) than the one that Wilson's interval is of."""
    found = share_interval([1] * wins + [0] * (count - wins), [1] * count)
    assert found == pytest.approx((low, high), abs=1e-3)


def test_what_is_always_won_has_an_interval_of_its_groups_number():
    low, high = share_interval([3, 2, 4], [3, 2, 4])
    z2 = 1.959964**2
    assert high == 1.0 and low == pytest.approx(3 / (3 + z2))  # Wilson's of 3 of 3


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_the_intervals_have_the_share_about_as_often_as_they_say_where_groups_win_together(share):
    """Groups of one to eight trials, of which most are won or lost together. Taken as independent trials,
    they would have intervals that hold it in fewer than 80 %."""
    rng, held, blind = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        trials = rng.integers(1, 9, 60)
        together = rng.random(60) < share
        alone = rng.binomial(trials, share)
        wins = np.where(rng.random(60) < 0.7, together * trials, alone)
        low, high = share_interval(wins, trials)
        held += low <= share <= high
        alike = share_interval([1] * int(wins.sum()) + [0] * int((trials - wins).sum()), [1] * int(trials.sum()))
        blind += alike[0] <= share <= alike[1]
    assert 0.91 < held / 1000 < 0.985 and blind / 1000 < 0.8


def test_groups_without_trials_do_not_count():
    assert share_interval([1, 0, 1, 0], [2, 0, 1, 0]) == share_interval([1, 1], [2, 1])
