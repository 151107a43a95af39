"""β-DPO's running statistics, draw and β are the authors' formulas, computed here anew in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.objectives import beta_dpo
from mmrlhf_jax.objectives.reward_scaling import MIN_BETA

BETA, ALPHA, MOMENTUM = 0.1, 0.6, 0.9
running_statistics = jax.jit(beta_dpo.running_statistics, static_argnums=4)


@functools.partial(jax.jit, static_argnums=5)
def drawn_pairs(key, margins, weights, mean, std, filtered):
    """As `beta_dpo.drawn_pairs`, with noise from a key."""
    return beta_dpo.drawn_pairs(jax.random.gumbel(key, jnp.shape(weights)), margins, weights, mean, std, filtered)


class Oracle:
    """The authors' trainer, in float64: what it keeps from batch to batch, and a batch's β given the drawn margins."""

    def __init__(self):
        self.mean = self.std = np.float64(0)

    def see(self, margins: np.ndarray) -> None:
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * margins.sum() / len(margins)
        spread = ((margins - margins.sum() / len(margins)) ** 2).sum() / (len(margins) - 1)
        self.std = MOMENTUM * self.std + (1 - MOMENTUM) * spread**0.5

    def beta(self, drawn: np.ndarray) -> float:
        return max(BETA * (1 + ALPHA * (drawn.sum() / len(drawn) - self.mean)), 1e-3)

    def chances(self, margins: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((margins - self.mean) / self.std) ** 2)


def batches(count: int, seed: int = 0):
    """(margins, weights) float32[3, 4] of batches whose margins drift; a quarter of the slots is unused and has any value."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        weights = np.where(rng.permutation(12) < 9, rng.choice([0.5, 1.0, 2.0], 12), 0).reshape(3, 4)
        margins = np.where(weights != 0, rng.normal(0.4 * number, 2 + 0.1 * number, (3, 4)), [[np.nan, 1e9, 7, -np.inf]])
        yield margins.astype(np.float32), weights.astype(np.float32)


def step(state, margins, weights, filtered: float, key):
    """(statistics, drawn pairs, β, scaled weights) as a train step has them, from the statistics before it."""
    state = running_statistics(*state, margins, weights, MOMENTUM)
    drawn = drawn_pairs(key, margins, weights, *state, filtered)
    beta = beta_dpo.batch_beta(margins, weights, drawn, state[0], BETA, ALPHA)
    return state, np.asarray(drawn), np.asarray(beta), np.asarray(beta_dpo.drawn_weights(weights, drawn))


@pytest.mark.parametrize("filtered", [0.0, 0.2, 0.5])
def test_a_run_of_batches_has_the_authors_mean_std_and_beta(filtered):
    """Also where β meets its lower bound, in some of the batches with large negative margins."""
    state, oracle, betas = (jnp.float32(0), jnp.float32(0)), Oracle(), []
    for number, (margins, weights) in enumerate(batches(24)):
        margins = margins - 8 if number % 5 == 4 else margins
        state, drawn, beta, _ = step(state, margins, weights, filtered, jax.random.key(number))
        used = weights != 0
        oracle.see(np.float64(margins[used]))
        np.testing.assert_allclose(np.float64(state), [oracle.mean, oracle.std], rtol=2e-6, err_msg=str(number))
        assert not drawn[~used].any() and drawn.sum() == int(9 * (1 - filtered))
        assert beta.shape == (3, 4)
        np.testing.assert_allclose(beta, oracle.beta(np.float64(margins[drawn])), rtol=1e-5, atol=1e-7, err_msg=str(number))
        betas.append(beta[0, 0])
    assert min(betas) == np.float32(MIN_BETA) and max(betas) > 1.3 * BETA


def test_the_torch_formula_of_the_authors_has_the_same_statistics_and_beta():
    torch = pytest.importorskip("torch")
    state, mean, std = (jnp.float32(0), jnp.float32(0)), torch.zeros(1), torch.zeros(1)
    for number, (margins, weights) in enumerate(batches(20, seed=1)):
        state, drawn, beta, _ = step(state, margins, weights, 0.2, jax.random.key(number))
        gaps = torch.tensor(margins[weights != 0])
        for running, batch in ((mean, gaps.mean()), (std, gaps.std())):
            running.mul_(MOMENTUM).add_(batch, alpha=1 - MOMENTUM)
        count = int(gaps.numel() * (1 - 0.2))
        assert drawn.sum() == count
        theirs = (BETA * (1 + ALPHA * (torch.tensor(margins[drawn]).mean() - mean))).clamp(min=1e-3)
        np.testing.assert_allclose(np.float64(state), [mean.item(), std.item()], rtol=2e-6)
        np.testing.assert_allclose(beta, theirs.item(), rtol=1e-5)


def test_pairs_are_drawn_as_by_torch_multinomial():
    """How often each pair is left out, of 4000 draws: within five standard errors of the authors' sampler."""
    torch = pytest.importorskip("torch")
    margins, mean, std = np.float32([0, 0.5, 1, 1.5, 2.4, -1.1]), 0.3, 0.7
    oracle = Oracle()
    oracle.mean, oracle.std = mean, std
    table = torch.tensor(oracle.chances(np.float64(margins))).expand(4000, -1)
    theirs = torch.multinomial(table, 4, replacement=False, generator=torch.Generator().manual_seed(0)).numpy()
    theirs = (theirs[:, :, None] == np.arange(6)).any(axis=1).mean(axis=0)
    keys = jax.random.split(jax.random.key(0), 4000)
    ours = np.asarray(jax.vmap(lambda key: drawn_pairs(key, margins, jnp.ones(6), mean, std, 0.25))(keys))
    assert (ours.sum(axis=1) == 4).all()
    ours = ours.mean(axis=0)
    assert theirs.max() > 0.9 and theirs.min() < 0.2
    assert (np.abs(ours - theirs) < 5 * np.sqrt(2 * theirs * (1 - theirs) / 4000)).all(), (ours, theirs)


@pytest.mark.parametrize(
    ("count", "filtered", "kept"), [(10, 0.2, 8), (5, 0.2, 4), (9, 0.2, 7), (3, 0.9, 1), (2, 0.2, 1), (7, 0, 7)]
)
def test_the_authors_count_is_drawn_and_at_least_one_pair(count, filtered, kept):
    """0.9 of three pairs: their code would draw none, and have the mean of none."""
    weights = jnp.zeros((2, 8)).at[jnp.arange(count) % 2, jnp.arange(count) // 2].set(1.0)
    margins = jax.random.normal(jax.random.key(1), (2, 8))
    drawn = drawn_pairs(jax.random.key(0), margins, weights, 0.1, 1.0, filtered)
    assert drawn.sum() == kept == max(int(count * (1 - filtered)), 1) and not drawn[weights == 0].any()


def test_pairs_too_far_from_the_mean_for_a_float32_weight_are_still_drawn_in_the_order_of_their_weights():
    """As in the first steps, where σ is a tenth of the batch's. An unused slot is never drawn in their place."""
    margins, weights = jnp.float32([[30, 31, 500, 1e25], [29, 0, 32, 0]]), jnp.float32([[1, 1, 1, 1], [1, 0, 1, 0]])
    for seed in range(20):
        drawn = drawn_pairs(jax.random.key(seed), margins, weights, 0.0, 0.1, 0.3)
        np.testing.assert_array_equal(drawn, [[True, True, False, False], [True, False, True, False]])
        alike = drawn_pairs(jax.random.key(seed), jnp.float32([[1e25, 1e26], [3, 1e27]]), jnp.ones((2, 2)), 0.0, 0.1, 0.5)
        assert alike.sum() == 2 and alike[1, 0]  # squares of the others overflow, so that their weights are equal


def test_a_margin_that_is_nan_is_not_left_out():
    margins, weights = jnp.float32([[0.1, jnp.nan, 0.2], [jnp.nan, 0.3, 0.4]]), jnp.float32([[1, 1, 1], [0, 1, 1]])
    for seed in range(20):
        drawn = drawn_pairs(jax.random.key(seed), margins, weights, 0.0, 1.0, 0.6)
        assert drawn.sum() == 2 and drawn[0, 1] and not drawn[1, 0]


def test_the_draw_depends_on_the_key_and_repeats_under_the_same():
    margins, weights = jax.random.normal(jax.random.key(5), (8, 4)), jnp.ones((8, 4))
    first, again, other = (drawn_pairs(jax.random.key(n), margins, weights, 0.0, 1.0, 0.5) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("filtered", [0.0, 0.2])
def test_margins_that_are_all_equal_give_no_nan(filtered):
    """Step 0: the policy is the reference, so that every margin, and with them σ, is exactly 0."""
    margins, weights = jnp.zeros((2, 3)), jnp.ones((2, 3))
    state, drawn, beta, scaled = step((jnp.float32(0), jnp.float32(0)), margins, weights, filtered, jax.random.key(0))
    assert (float(state[0]), float(state[1])) == (0, 0)
    assert drawn.sum() == int(6 * (1 - filtered))
    np.testing.assert_allclose(beta, BETA, rtol=1e-6)
    np.testing.assert_allclose(scaled.sum(), 6, rtol=1e-6)
    counts = sum(drawn_pairs(jax.random.key(n), margins, weights, 0.0, 0.0, 0.5).astype(int) for n in range(200))
    assert counts.min() > 70 and counts.max() < 130  # 100 expected of each, standard deviation 7


@pytest.mark.parametrize("weights", [[0, 1, 0], [0, 0, 0]])
@pytest.mark.parametrize("filtered", [0.0, 0.5])
def test_fewer_than_two_pairs_change_nothing_and_are_not_left_out(weights, filtered):
    weights, before = jnp.float32(weights), (jnp.float32(1.5), jnp.float32(0.25))
    state, drawn, beta, scaled = step(before, jnp.float32([3, 5, 7]), weights, filtered, jax.random.key(0))
    assert (float(state[0]), float(state[1])) == (1.5, 0.25)
    np.testing.assert_array_equal(drawn, weights != 0)
    np.testing.assert_allclose(beta, BETA, rtol=1e-6)
    np.testing.assert_array_equal(scaled, weights)


def test_the_drawn_pairs_have_the_weight_of_all_and_their_mean_is_exact():
    """With unequal weights, as under data.weighting: group. The total is the same whichever pairs are drawn."""
    rng = np.random.default_rng(2)
    weights, losses = rng.uniform(0.1, 3, (4, 5)) * (rng.uniform(size=(4, 5)) < 0.8), rng.normal(size=(4, 5))
    for seed in range(5):
        drawn = np.asarray(drawn_pairs(jax.random.key(seed), jnp.float32(losses), jnp.float32(weights), 0.0, 1.0, 0.4))
        scaled = np.float64(beta_dpo.drawn_weights(jnp.float32(weights), drawn))
        np.testing.assert_allclose(scaled.sum(), weights.sum(), rtol=1e-6)
        expected = (weights * losses)[drawn].sum() / weights[drawn].sum()
        np.testing.assert_allclose((scaled * losses).sum() / scaled.sum(), expected, rtol=1e-5)
        assert (scaled[~drawn] == 0).all()
