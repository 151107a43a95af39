"""β(δ) is the paper's under `margin` and the released code's under `ls_factor` and `batch_implicit`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_jax.objectives import reward_scaling
from mmrlhf_jax.objectives.reward_scaling import MIN_BETA


@jax.jit
def batch_implicit(key, margins, weights, beta, w):
    """As `reward_scaling.batch_implicit`, with noise from a key."""
    return reward_scaling.batch_implicit(jax.random.gumbel(key, jnp.shape(weights)), margins, weights, beta, w)


PAPER = {"beta": 0.1, "w": 0.5, "k": 0.5}
margins_8 = st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8)


@pytest.mark.parametrize(
    ("delta", "beta"),
    [(0, 0.1), (0.5, 0.111060), (1, 0.119673), (2, 0.131606), (4, 0.143233), (8, 0.149084), (-1, 0.1)],
)
def test_margin_gives_the_papers_values(delta, beta):
    np.testing.assert_allclose(reward_scaling.margin(jnp.float32(delta), **PAPER), beta, atol=5e-7)


def test_unclamped_margin_lowers_beta_where_the_reward_model_disagrees_but_never_to_zero():
    deltas = jnp.float32([-1, 2, -100])
    betas = reward_scaling.margin(deltas, **PAPER, clamp_negative=False)
    np.testing.assert_allclose(betas, [0.067564, 0.131606, MIN_BETA], atol=5e-7)


@settings(deadline=None, max_examples=50)
@given(margins_8, st.floats(0.01, 1), st.floats(0, 2), st.floats(0.1, 5))
def test_margin_is_the_formula_grows_with_the_margin_and_stays_in_the_papers_range(deltas, beta, w, k):
    deltas = np.sort(np.float32(deltas))
    betas = np.asarray(reward_scaling.margin(deltas, beta, w, k))
    np.testing.assert_allclose(betas, beta * (1 + w * (1 - np.exp(-k * np.maximum(np.float64(deltas), 0)))), rtol=1e-6)
    assert (np.diff(betas) >= -1e-6 * beta).all()
    assert (betas >= beta * (1 - 1e-6)).all()
    assert (betas <= beta * (1 + w) * (1 + 1e-6)).all()


@pytest.mark.parametrize("clamp_negative", [True, False])
def test_margins_of_ten_thousand_are_finite_in_value_and_gradient(clamp_negative):
    deltas = jnp.float32([1e4, -1e4, 0])

    def betas(deltas):
        return reward_scaling.margin(deltas, **PAPER, clamp_negative=clamp_negative)

    np.testing.assert_allclose(betas(deltas), [0.15, 0.1 if clamp_negative else MIN_BETA, 0.1], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda d: betas(d).sum())(deltas)).all()


def test_fixed_is_beta_everywhere():
    np.testing.assert_array_equal(reward_scaling.fixed(jnp.zeros((2, 3)), 0.3), np.full((2, 3), 0.3, np.float32))


def test_ls_factor_is_linear_and_bounded_below():
    betas = reward_scaling.ls_factor(jnp.float32([1, 0, -3, -1e4]), beta=0.1, w=0.5)
    np.testing.assert_allclose(betas, [0.15, 0.1, MIN_BETA, MIN_BETA], rtol=1e-6)


# --- batch_implicit ---------------------------------------------------------------------------------------------------


def upstream(margins: np.ndarray, selected: np.ndarray, beta: float, w: float) -> float:
    """The released code's β, given which margins were drawn."""
    return max(beta * (1 + w * (selected.mean() - margins.mean())), 1e-3)


def gaussian_weights(margins: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((margins - margins.mean()) / (margins.std(ddof=1) + 1e-7)) ** 2)


@settings(deadline=None, max_examples=30)
@given(margins_8, st.integers(0, 2**31 - 1))
def test_batch_implicit_is_upstreams_formula_on_a_draw_without_replacement(margins, seed):
    key, margins = jax.random.key(seed), np.float32(margins)
    # In float32, because margins that are nearly alike may have sums that differ by rounding alone.
    scores = (margins - margins.mean()) / (margins.std(ddof=1) + np.float32(1e-7))
    sums = -0.5 * scores**2 + np.asarray(jax.random.gumbel(key, (8,)))
    drawn = margins[np.argsort(-sums)[: int(0.8 * 8)]]
    betas = batch_implicit(key, margins, jnp.ones(8), 0.1, 0.5)
    assert betas.shape == (8,)
    np.testing.assert_allclose(betas, upstream(margins, np.float64(drawn), 0.1, 0.5), rtol=1e-5, atol=1e-5)


def test_batch_implicit_draws_as_torch_multinomial_does():
    """How often each pair is drawn, of 4000 draws: within five standard errors of upstream's sampler. β tells which were drawn,
    because every four of these six margins have another mean."""
    torch = pytest.importorskip("torch")
    margins = np.float32([0, 0.5, 1.2, 1.9, 9, -3.3])
    samples = [np.array(sample) for sample in itertools.combinations(range(6), 4)]
    possible = np.array([upstream(np.float64(margins), np.float64(margins[sample]), 0.1, 0.1) for sample in samples])
    assert np.diff(np.sort(possible)).min() > 1e-4
    table = torch.tensor(gaussian_weights(np.float64(margins))).expand(4000, -1)
    theirs = torch.multinomial(table, int(0.8 * 6), replacement=False, generator=torch.Generator().manual_seed(0)).numpy()
    theirs = (theirs[:, :, None] == np.arange(6)).any(axis=1).mean(axis=0)
    keys = jax.random.split(jax.random.key(0), 4000)
    betas = np.asarray(jax.vmap(lambda key: batch_implicit(key, margins, jnp.ones(6), 0.1, 0.1)[0])(keys))
    found = np.abs(betas[:, None] - possible).argmin(axis=1)
    np.testing.assert_allclose(betas, possible[found], rtol=1e-5)
    ours = (np.array(samples)[found][:, :, None] == np.arange(6)).any(axis=1).mean(axis=0)
    assert theirs.max() > 0.8 and theirs.min() < 0.25
    assert (np.abs(ours - theirs) < 5 * np.sqrt(2 * theirs * (1 - theirs) / 4000)).all(), (ours, theirs)


def test_batch_implicit_reads_used_slots_only_and_repeats_under_the_same_key():
    weights = jnp.float32([[1, 0, 1], [1, 1, 0]])
    margins = jnp.float32([[1, jnp.nan, 2], [-3, 4, 1e9]])
    key = jax.random.key(3)
    betas = [batch_implicit(key, m, weights, 0.1, 0.5) for m in (margins, margins.at[0, 1].set(7), margins)]
    assert betas[0].shape == (2, 3)
    np.testing.assert_array_equal(betas[0], betas[1])
    np.testing.assert_array_equal(betas[0], betas[2])
    four = np.array([1, 2, -3, 4])
    possible = [upstream(four, np.delete(four, left_out), 0.1, 0.5) for left_out in range(4)]
    assert np.isclose(np.float64(betas[0][0, 0]), possible, rtol=1e-5).any()


@pytest.mark.parametrize("weights", [[0, 1, 0], [0, 0, 0]])
def test_batch_implicit_leaves_beta_alone_with_fewer_than_two_pairs(weights):
    betas = batch_implicit(jax.random.key(0), jnp.float32([3, 5, 7]), jnp.float32(weights), 0.1, 0.5)
    np.testing.assert_allclose(betas, 0.1, rtol=1e-6)


def test_batch_implicit_is_finite_at_ten_thousand_and_a_constant_to_the_gradient():
    margins = jnp.float32([1e4, -1e4, 1e4, 0])

    def beta(margins):
        return batch_implicit(jax.random.key(1), margins, jnp.ones(4), 0.1, 0.5)[0]

    assert np.isfinite(beta(margins))
    assert beta(margins) >= MIN_BETA
    np.testing.assert_array_equal(jax.grad(beta)(margins), 0)


def test_four_fifths_in_integers_is_upstreams_int_of_a_float():
    assert all(int(0.8 * n) == n * 4 // 5 for n in range(100_000))
