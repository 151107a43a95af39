"""Figures of target tokens, chunk by chunk, against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.objectives.logprobs import sum_by_response, target_logps
from mmrlhf_jax.sharding import rules

ROWS, SLOTS, WIDTH, WORDS, TARGETS = 2, 9, 16, 50, 7


def case(scale: float):
    rng = np.random.default_rng(0)
    hidden, vocabulary = rng.normal(size=(ROWS, SLOTS, WIDTH)), scale * rng.normal(size=(WIDTH, WORDS))
    targets, predictors = rng.integers(0, WORDS, (ROWS, TARGETS)), rng.integers(0, SLOTS, (ROWS, TARGETS))
    return hidden.astype(np.float32), vocabulary.astype(np.float32), targets, predictors


def in_float64(hidden, vocabulary, targets, predictors):
    """Log-prob, whether it is the most likely token, mean logit, entropy."""
    states = np.take_along_axis(hidden.astype(np.float64), predictors[..., None], axis=1)
    logits = states @ vocabulary.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    logps = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    own = np.take_along_axis(logps, targets[..., None], axis=-1)[..., 0]
    return own, logits.argmax(-1) == targets, logits.mean(-1), -(np.exp(logps) * logps).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 7, 256])
@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_every_figure_is_float64s(chunk, scale):
    """Also where one word has all the probability: the entropy is then 0 and not 0 · ∞."""
    arguments = case(scale)
    with jax.default_matmul_precision("highest"):
        found = target_logps(*arguments, chunk=chunk)
    for name, actual, expected in zip(found._fields, found, in_float64(*arguments), strict=True):
        # A float32 logit of 1e3 is known to 1e-4: so is what is left of a difference of two.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * max(scale, 1.0), err_msg=name)


@pytest.mark.parametrize("name", ["correct", "mean_logits", "entropy"])
def test_only_log_probs_have_a_gradient(name):
    hidden, *rest = case(1.0)
    gradient = jax.grad(lambda hidden: getattr(target_logps(hidden, *rest), name).sum())(hidden)
    assert not gradient.any()
    assert jax.grad(lambda hidden: target_logps(hidden, *rest).logps.sum())(hidden).any()


@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_a_bfloat16_models_gradients_are_float64s(platform, chunk, monkeypatch):
    """Also on GPUs, where the gradient of the logits is multiplied in two bfloat16 pieces: one piece alone is wrong by 1e-3.

    The gradient of the states is bfloat16, which rounds it by up to 2^-8 of itself."""
    monkeypatch.setattr(rules, "platform", lambda: platform)
    hidden, vocabulary, targets, predictors = case(1.0)
    hidden, vocabulary = (np.asarray(jnp.bfloat16(x), np.float32) for x in (hidden, vocabulary))
    weights = np.random.default_rng(1).normal(size=(ROWS, TARGETS)).astype(np.float32)

    def loss(hidden, vocabulary):
        return (weights * target_logps(hidden, vocabulary, targets, predictors, chunk=chunk).logps).sum()

    to_states, to_vocabulary = jax.grad(loss, argnums=(0, 1))(jnp.bfloat16(hidden), vocabulary)
    expected = gradients_in_float64(hidden, vocabulary, targets, predictors, weights)
    np.testing.assert_allclose(to_vocabulary, expected[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.float32(to_states), expected[0], rtol=2**-7, atol=1e-5)


def gradients_in_float64(hidden, vocabulary, targets, predictors, weights):
    """Of the weighted sum of log-probs, by the states and by the vocabulary."""
    wide = vocabulary.astype(np.float64)
    states = np.take_along_axis(hidden.astype(np.float64), predictors[..., None], axis=1)
    logits = states @ wide
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    back = weights[..., None] * (np.eye(WORDS)[targets] - probabilities)
    to_states = np.zeros(hidden.shape)
    for row, (slots, gradient) in enumerate(zip(predictors, back @ wide.T, strict=True)):
        np.add.at(to_states[row], slots, gradient)
    return to_states, np.einsum("bme,bmv->ev", states, back)


@pytest.mark.parametrize("learns", [True, False])
def test_the_adapters_of_a_bfloat16_vocabulary_learn_the_same_on_every_platform(learns, monkeypatch):
    """With a vocabulary that learns or is frozen; the states' gradient is the sum over both products."""
    hidden, vocabulary, targets, predictors = case(1.0)
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(WIDTH, 4)).astype(np.float32), rng.normal(size=(4, WORDS)).astype(np.float32)
    found = {}
    for platform in ("tpu", "gpu"):
        monkeypatch.setattr(rules, "platform", lambda platform=platform: platform)

        def loss(a, b, vocabulary):
            return target_logps(jnp.bfloat16(hidden), vocabulary, targets, predictors, adapter=(a, b), chunk=3).logps.sum()

        found[platform] = jax.grad(loss, argnums=(0, 1, 2) if learns else (0, 1))(a, b, vocabulary)
    to_a, to_b, *to_vocabulary = zip(*found.values(), strict=True)
    assert np.linalg.norm(to_a[0] - to_a[1]) < 2**-8 * np.linalg.norm(to_a[0])  # it passes through bfloat16 states
    for pair in (to_b, *to_vocabulary):
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-4)


def test_sums_go_to_their_responses_and_unused_targets_nowhere():
    sums = sum_by_response(jnp.array([[1.0, 2.0, 4.0, 8.0]]), jnp.array([[1, 0, 1, 2]]), 2)
    np.testing.assert_array_equal(sums, [[2.0, 5.0]])
