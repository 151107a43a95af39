"""Figures of target tokens, chunk by chunk, against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.objectives.logprobs import sum_by_response, target_logps

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


def test_sums_go_to_their_responses_and_unused_targets_nowhere():
    sums = sum_by_response(jnp.array([[1.0, 2.0, 4.0, 8.0]]), jnp.array([[1, 0, 1, 2]]), 2)
    np.testing.assert_array_equal(sums, [[2.0, 5.0]])
