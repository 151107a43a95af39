"""The reward model's loss is the released code's under its settings and TRL's where they coincide.

Oracles: a NumPy float64 transcription of the released `reward_trainer.py`'s formula, and TRL's own
`RewardTrainer.compute_loss` (with torch autograd), which is fed rewards through a stub in place of a model.
"""

import functools
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.objectives import weighted
from mmrlhf_jax.objectives.reward_model import critique_sum, reward_losses, reward_metrics, score_sum

COEFFICIENTS = {"score": 1.5, "ties": 1.5 * 0.7, "centring": 0.01, "critique": 0.8}


def batch(seed: int = 0):
    """Two rows of four responses with strict pairs, tied pairs and unused slots; some responses have no critique."""
    rng = np.random.default_rng(seed)
    lengths = np.float32([[5, 9, 0, 3], [0, 0, 7, 0]])
    return {
        "rewards": rng.normal(0, 2, (2, 4)).astype(np.float32),
        "pairs": np.int32([[[0, 1], [0, 2], [9, 9]], [[2, 3], [3, 1], [2, 1]]]),
        "pair_weights": np.float32([[1, 1, 0], [1, 1, 1]]),
        "critique_logps": -rng.uniform(1, 3, (2, 4)).astype(np.float32) * lengths,
        "critique_lengths": lengths,
        "tie_pairs": np.int32([[[1, 2]], [[0, 0]]]),
        "tie_weights": np.float32([[1], [0]]),
    }


def expand(values, pairs, weights):
    """(chosen, rejected) of the used pairs, one after the other, float64."""
    rows, slots = np.nonzero(weights)
    return np.float64(values)[rows, pairs[rows, slots].T]


def upstream_loss(b) -> float:
    """The released code's formula on the pair-expanded batch, strict pairs first, then ties; float64."""
    lengths = b["critique_lengths"]
    cross_entropy = np.where(lengths > 0, -np.float64(b["critique_logps"]) / np.maximum(lengths, 1), 0)
    strict, ties = (b["pairs"], b["pair_weights"]), (b["tie_pairs"], b["tie_weights"])
    chosen, rejected = np.concatenate([expand(b["rewards"], *strict), expand(b["rewards"], *ties)], axis=1)
    critiques = np.concatenate([expand(cross_entropy, *strict), expand(cross_entropy, *ties)], axis=1)
    is_tie = np.arange(chosen.size) >= np.count_nonzero(b["pair_weights"])

    difference = chosen - rejected
    reward_loss = np.mean(np.logaddexp(0, -difference[~is_tie]))
    reward_loss += 0.7 * np.mean(difference[is_tie] ** 2)
    reward_loss *= 1.5
    reward_loss += 0.01 * np.mean((chosen + rejected) ** 2)
    return float(reward_loss + 0.8 * np.mean(critiques.sum(axis=0)))


@functools.partial(jax.jit, static_argnames="weighting")
def our_loss(b, denominators=None, weighting: str = "pair"):
    return weighted.mix(reward_losses(**b, critique_weighting=weighting), COEFFICIENTS, denominators)


def test_loss_and_gradient_equal_the_released_code_on_the_expanded_pairs():
    """With ties, centring, unused slots and responses without a critique, under every coefficient."""
    b = batch()
    np.testing.assert_allclose(our_loss(b), upstream_loss(b), rtol=1e-6)
    learnt = {field: b[field] for field in ("rewards", "critique_logps")}
    gradients = jax.jit(jax.grad(lambda x: our_loss(b | x)))(learnt)
    for field in learnt:
        gradient = gradients[field]
        expected = np.zeros((2, 4))
        for index in np.ndindex(2, 4):
            move = np.zeros((2, 4))
            move[index] = 1e-4
            up, down = (upstream_loss(b | {field: b[field] + sign * move}) for sign in (1, -1))
            expected[index] = (up - down) / 2e-4
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_paper_loss_is_critique_plus_bradley_terry():
    b = batch() | {"tie_pairs": None, "tie_weights": None}
    terms = reward_losses(**b, critique_weighting="pair")
    assert "ties" not in terms
    total = weighted.mix(terms, {"score": 1.0, "critique": 1.0})
    chosen, rejected = expand(b["rewards"], b["pairs"], b["pair_weights"])
    cross_entropy = -b["critique_logps"] / np.maximum(b["critique_lengths"], 1)
    critiques = expand(cross_entropy, b["pairs"], b["pair_weights"])
    expected = np.mean(np.logaddexp(0, rejected - chosen)) + np.mean(critiques.sum(axis=0))
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_a_response_counts_once_per_pair_or_once():
    """Three critiques with mean losses 2, 4 and 6, one response without; the third is in two pairs."""
    logps, lengths = jnp.float32([[-6, -8, -6, 0]]), jnp.float32([[3, 2, 1, 0]])
    pairs, weights = jnp.int32([[[0, 2], [2, 3], [0, 0]]]), jnp.float32([[1, 1, 0]])
    per_pair = critique_sum(logps, lengths, pairs, weights, "pair")
    per_response = critique_sum(logps, lengths, pairs, weights, "response")
    assert per_pair.mean == ((2 + 6) + (6 + 0)) / 2
    assert per_response.mean == (2 + 4 + 6) / 3


def test_a_batch_without_critiques_has_critique_loss_and_gradient_zero():
    pairs, weights, lengths = jnp.int32([[[0, 1]]]), jnp.float32([[1]]), jnp.zeros((1, 2))
    for weighting in ("pair", "response"):
        loss, gradient = jax.value_and_grad(
            lambda x, weighting=weighting: critique_sum(x, lengths, pairs, weights, weighting).mean
        )(jnp.zeros((1, 2)))
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)


def test_an_unknown_weighting_is_refused():
    with pytest.raises(UserError, match="unknown critique weighting 'token'; choose from pair, response"):
        our_loss(batch(), weighting="token")


@pytest.mark.parametrize("weighting", ["pair", "response"])
def test_pieces_under_the_whole_batchs_denominators_add_up_to_the_whole(weighting):
    """Gradient accumulation is exact. Denominators need no forward pass: zeros for rewards and log-probs give them."""
    b = batch()
    zeros = b | {"rewards": jnp.zeros((2, 4)), "critique_logps": jnp.zeros((2, 4))}
    denominators = {k: v.weight for k, v in reward_losses(**zeros, critique_weighting=weighting).items()}
    pieces = [our_loss({k: v[row : row + 1] for k, v in b.items()}, denominators, weighting) for row in range(2)]
    np.testing.assert_allclose(sum(pieces), our_loss(b, weighting=weighting), rtol=1e-6)


def test_margins_of_ten_thousand_are_finite_in_value_and_gradient():
    chosen, rejected = jnp.float32([1e4, -1e4, 0]), jnp.float32([-1e4, 1e4, 0])
    value, gradient = jax.value_and_grad(lambda c: score_sum(c, rejected, jnp.ones(3)).total)(chosen)
    np.testing.assert_allclose(value, 2e4 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [0, -1, -0.5])


def test_bfloat16_rewards_are_compared_in_float32():
    b = batch() | {"rewards": jnp.bfloat16(batch()["rewards"])}
    terms = reward_losses(**b, critique_weighting="pair")
    assert all(x.dtype == jnp.float32 for term in terms.values() for x in term)


# --- against TRL itself -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_step():
    """TRL's loss, gradient with respect to [chosen; rejected] rewards, and metrics."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("trl", minversion="1.16.0")
    from trl.trainer.reward_trainer import RewardTrainer

    def step(chosen, rejected, margins=None, centring=None):
        leaf = torch.tensor(np.concatenate([chosen, rejected]), requires_grad=True)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            args=SimpleNamespace(center_rewards_coefficient=centring),
            accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {"attention_mask": torch.ones(1)} | ({} if margins is None else {"margin": torch.tensor(margins)})
        loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=leaf[:, None]), inputs)
        loss.backward()
        return loss.item(), leaf.grad.numpy(), {k: v[-1] for k, v in trainer._metrics["train"].items()}

    return step


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def trl_batch_step(rewards, margins, centring):
    """TRL's batch of 5 pairs as one row of 10 responses without critiques."""
    pairs, weights, none = jnp.arange(10).reshape(1, 2, 5).swapaxes(1, 2), jnp.ones((1, 5)), jnp.zeros((1, 10))
    terms = reward_losses(rewards, pairs, weights, none, none, "pair", margins=margins[None])
    loss = weighted.mix(terms, {"score": 1.0, "centring": centring, "critique": 1.0})
    return loss, weighted.summary(reward_metrics(rewards, pairs, weights, terms))


@pytest.mark.parametrize("with_margins", [False, True])
@pytest.mark.parametrize("centring", [None, 0.01])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_loss_gradient_and_metrics_equal_trls_own_code(trl_step, with_margins, centring, scale):
    """One pair is a tie, which is a miss."""
    rng = np.random.default_rng(4)
    rewards = np.float32(scale * rng.normal(0, 1, (2, 5)))
    rewards[1, 0] = rewards[0, 0]
    margins = rng.uniform(0, 2, 5).astype(np.float32) if with_margins else None
    (loss, metrics), gradient = trl_batch_step(
        rewards.reshape(1, 10), np.zeros(5) if margins is None else margins, centring or 0.0
    )
    theirs = trl_step(*rewards, margins, centring)
    np.testing.assert_allclose(loss, theirs[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], theirs[1], rtol=1e-5, atol=1e-7)
    for name in ("accuracy", "margin", "min_reward", "mean_reward", "max_reward"):
        np.testing.assert_allclose(metrics[name], theirs[2][name], rtol=1e-5, err_msg=name)
    if centring is None:
        np.testing.assert_allclose(metrics["score/loss"], theirs[0], rtol=1e-6)
    assert metrics["critique/loss"] == 0


def test_metrics_of_two_pieces_merge_into_those_of_the_whole():
    b = batch()

    def metrics(rows):
        piece = {k: v[rows] for k, v in b.items()}
        terms = reward_losses(**piece, critique_weighting="pair")
        return reward_metrics(piece["rewards"], piece["pairs"], piece["pair_weights"], terms)

    merged = weighted.summary(weighted.merge(metrics(slice(0, 1)), metrics(slice(1, 2))))
    whole = weighted.summary(metrics(slice(0, 2)))
    assert merged.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-6, err_msg=name)
    chosen, rejected = expand(b["rewards"], b["pairs"], b["pair_weights"])
    np.testing.assert_allclose(whole["min_reward"], min(chosen.min(), rejected.min()), rtol=1e-6)
    np.testing.assert_allclose(whole["accuracy"], (chosen > rejected).mean(), rtol=1e-6)
