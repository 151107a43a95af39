"""A draw of pairs is by the pairs themselves: where they lie in a batch changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from mmrlhf_jax.objectives.pair_draws import drawn_pairs, pair_noise

KEY = jax.random.key(7)
IDS = np.int32([[10, 11, 12, -1], [40, 41, 42, 43]])
PAIRS = np.int32([[[0, 1], [0, 2], [1, 2], [0, 0]], [[0, 1], [2, 3], [0, 3], [0, 0]]])


def test_the_noise_of_a_pair_is_that_of_its_two_responses_wherever_they_lie():
    noise = pair_noise(KEY, IDS, PAIRS)
    moved = pair_noise(KEY, np.int32([[99, 40, 43, 12, 10, 5]]), np.int32([[[1, 2], [4, 3]]]))
    np.testing.assert_array_equal(moved, [[noise[1, 2], noise[0, 1]]])


def test_copies_of_a_pair_are_drawn_together():
    """As where a batch holds a group twice. Of four pairs and four copies, four are drawn."""
    ids, pairs = np.int32([[1, 2, 3, 4]] * 2), np.int32([[[0, 1], [2, 3], [0, 2], [1, 3]]] * 2)
    for seed in range(20):
        noise = pair_noise(jax.random.key(seed), ids, pairs)
        drawn = np.asarray(drawn_pairs(noise, jnp.zeros((2, 4)), jnp.ones((2, 4), bool), np.full(9, 4, np.int32)))
        assert drawn.sum() == 4
        np.testing.assert_array_equal(drawn[0], drawn[1])


def test_noise_differs_between_pairs_their_directions_and_keys():
    ids, pairs = np.arange(60, dtype=np.int32)[None], np.int32([[[a, b] for a in range(60) for b in range(60) if a != b]])
    noise = np.asarray(pair_noise(KEY, ids, pairs))
    assert len(np.unique(noise)) > 0.999 * noise.size  # float32 has so few values that some occur twice
    assert not (noise == np.asarray(pair_noise(jax.random.key(8), ids, pairs))).any()


def test_the_noise_has_the_standard_gumbel_distribution():
    ids, pairs = np.arange(100, dtype=np.int32)[None], np.int32([[[a, b] for a in range(100) for b in range(100) if a != b]])
    noise = np.sort(np.asarray(pair_noise(KEY, ids, pairs), np.float64).ravel())
    expected = np.exp(-np.exp(-noise))  # its distribution function
    found = (np.arange(len(noise)) + 0.5) / len(noise)
    assert np.abs(expected - found).max() < 1.95 / np.sqrt(len(noise))  # Kolmogorov and Smirnov's bound, P < 0.001


def test_the_pairs_of_the_largest_sums_are_drawn_and_no_unused_one():
    rng = np.random.default_rng(0)
    for count in range(1, 12):
        used = np.zeros((3, 4), bool)
        used.ravel()[rng.permutation(12)[:count]] = True
        noise, weights = rng.gumbel(size=(2, 3, 4)).astype(np.float32)
        counts = np.int32([n // 2 for n in range(13)])
        drawn = np.asarray(drawn_pairs(jnp.asarray(noise), jnp.asarray(weights), jnp.asarray(used), counts))
        sums = np.where(used, noise + weights, -np.inf)
        largest = np.argsort(-sums, axis=None)[: count // 2]
        np.testing.assert_array_equal(np.flatnonzero(drawn), np.sort(largest))
