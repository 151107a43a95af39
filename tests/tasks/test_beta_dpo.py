"""The terms of mode beta_dpo: the drawn pairs alone are compared, all are learnt by the SFT term, and β is a constant."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import Budget, empty_row
from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry
from mmrlhf_jax.objectives import Outputs, beta_dpo
from mmrlhf_jax.objectives.pair_draws import pair_noise
from mmrlhf_jax.tasks import task_of

LOSSES = {"sigmoid": 1.0, "sft": 0.5}
STATISTICS = {"beta_dpo/mean": jnp.float32(0.7), "beta_dpo/std": jnp.float32(1.9)}
KEY = jax.random.key(4)


def task(**scaling):
    return task_of(config.Preference(losses=LOSSES, scaling=config.Scaling(**{"mode": "beta_dpo", "w": 0.6} | scaling)))


@pytest.fixture(scope="module")
def batch():
    """Two rows with four responses of two to five tokens each, and six pairs of unequal weight, three of which are unused."""
    row = empty_row(Budget(16, 1, 1, 16, 4, 8), VisionGeometry(28, 14, ((28, 28),), 9))
    rows, rng = jax.tree.map(lambda x: np.stack([x, x]), row), np.random.default_rng(0)
    pairs = np.zeros((2, 8, 2), np.int32)
    pairs[:, :6] = list(itertools.combinations(range(4), 2))
    weights = np.zeros((2, 8), np.float32)
    weights[:, :6] = rng.uniform(0.2, 1, (2, 6))
    weights[0, 2] = weights[1, 0] = weights[1, 5] = 0
    responses = np.repeat(np.arange(4), (2, 5, 4, 3))
    filled = np.concatenate([responses, [4, 4]]).astype(np.int32)
    reference = rng.normal(-20, 1, (2, 4)).astype(np.float32)
    ids = np.arange(8, dtype=np.int32).reshape(2, 4)
    rows = rows._replace(pairs=pairs, pair_weights=weights, responses=np.stack([filled] * 2), reference_logps=reference)
    return rows._replace(response_ids=ids)


@pytest.fixture(scope="module")
def logps(batch):
    return batch.reference_logps + np.random.default_rng(1).normal(0, 2, (2, 4)).astype(np.float32)


def terms(task, batch, logps):
    zeros = jnp.zeros(logps.shape)
    return task.terms(Outputs(logps, zeros, zeros, zeros, zeros, jnp.zeros(batch.targets.shape)), batch, KEY, None, STATISTICS)


def oracle(batch, logps, drawn):
    """(β, sigmoid loss, its gradient by the log-probs, token mean of chosen responses) in float64, given the drawn pairs."""
    ratios, weights = np.float64(logps) - np.float64(batch.reference_logps), np.float64(batch.pair_weights)
    used = [tuple(place) for place in np.argwhere(weights > 0)]
    margins = {(b, p): ratios[b, batch.pairs[b, p, 0]] - ratios[b, batch.pairs[b, p, 1]] for b, p in used}
    compared = [place for place in used if drawn[place]]
    beta = max(0.1 * (1 + 0.6 * (np.mean([margins[place] for place in compared]) - 0.7)), 1e-3)
    total, loss, gradient = sum(weights[place] for place in compared), 0.0, np.zeros((2, 4))
    for b, p in compared:
        share, wrong = weights[b, p] / total, 1 / (1 + np.exp(beta * margins[b, p]))
        loss += share * -np.log(1 - wrong)
        for side, sign in zip(batch.pairs[b, p], (-1, 1), strict=True):
            gradient[b, side] += sign * share * beta * wrong
    lengths, chosen = [2, 5, 4, 3], [(b, p, batch.pairs[b, p, 0]) for b, p in used]
    tokens = sum(weights[b, p] * lengths[r] for b, p, r in chosen)
    return beta, loss, gradient, sum(-weights[b, p] * np.float64(logps[b, r]) for b, p, r in chosen) / tokens


@pytest.mark.parametrize("filtered", [0.0, 0.2, 0.5])
def test_loss_and_gradient_are_those_of_the_drawn_pairs_and_the_sft_terms_those_of_all(batch, logps, filtered):
    made = task(filtered=filtered)
    margins = np.zeros((2, 8), np.float32)
    for b, p in np.argwhere(batch.pair_weights > 0):
        chosen, rejected = batch.pairs[b, p]
        margins[b, p] = (logps - batch.reference_logps)[b, chosen] - (logps - batch.reference_logps)[b, rejected]
    noise = pair_noise(KEY, batch.response_ids, batch.pairs)
    drawn = np.asarray(beta_dpo.drawn_pairs(noise, margins, batch.pair_weights, *STATISTICS.values(), filtered))
    assert drawn.sum() == int(9 * (1 - filtered))
    beta, loss, gradient, sft = oracle(batch, logps, drawn)
    sums, metrics = terms(made, batch, logps)
    np.testing.assert_allclose(metrics["beta/mean"].mean, beta, rtol=1e-5)
    np.testing.assert_allclose(metrics["beta/min"].value, beta, rtol=1e-5)
    np.testing.assert_allclose(sums["sigmoid"].mean, loss, rtol=1e-5)
    np.testing.assert_allclose([sums["sft"].mean, sums["chosen_sft"].mean], sft, rtol=1e-5)
    found = jax.grad(lambda x: terms(made, batch, x)[0]["sigmoid"].mean)(jnp.asarray(logps))
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("filtered", [0.2, 0.5])
def test_the_weights_of_the_sums_do_not_depend_on_the_outputs(batch, logps, filtered):
    """Whatever is drawn: a step divides by weights that it computes from zeros in the place of the outputs."""
    found, zeros = (terms(task(filtered=filtered), batch, x)[0] for x in (logps, np.zeros_like(logps)))
    assert found.keys() == zeros.keys() == {"sigmoid", "sft", "chosen_sft"}
    for name in found:
        np.testing.assert_allclose(found[name].weight, zeros[name].weight, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["sigmoid"].weight, batch.pair_weights.sum(), rtol=1e-6)


def test_held_out_pairs_are_all_judged_however_many_a_training_batch_leaves_out(batch, logps):
    judging = task(filtered=0.5).judging
    beta, loss, _, _ = oracle(batch, logps, batch.pair_weights > 0)
    sums, metrics = terms(judging, batch, logps)
    np.testing.assert_allclose(metrics["beta/mean"].mean, beta, rtol=1e-5)
    np.testing.assert_allclose(sums["sigmoid"].mean, loss, rtol=1e-5)
    assert judging.statistics == task(filtered=0.5).statistics


def test_held_out_loss_of_one_beta_does_not_depend_on_how_rows_are_batched(batch, logps):
    """With w = 0, so that nothing is of the batch but the pairs that are left out in training."""
    judging = task(w=0.0, filtered=0.5).judging
    whole = terms(judging, batch, logps)[0]
    rows = [terms(judging, jax.tree.map(lambda x, i=i: x[i : i + 1], batch), logps[i : i + 1])[0] for i in range(2)]
    for name, sum_ in whole.items():
        np.testing.assert_allclose(sum_.total, rows[0][name].total + rows[1][name].total, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(sum_.weight, rows[0][name].weight + rows[1][name].weight, rtol=1e-6, err_msg=name)


def test_statistics_move_by_the_margins_of_the_batch(batch, logps):
    zeros = jnp.zeros((2, 4))
    outputs = Outputs(logps, zeros, zeros, zeros, zeros, jnp.zeros((2, 16)))
    found = task(momentum=0.75).updated_statistics(STATISTICS, outputs, batch)
    ratios = np.float64(logps) - np.float64(batch.reference_logps)
    margins = [
        ratios[b, batch.pairs[b, p, 0]] - ratios[b, batch.pairs[b, p, 1]] for b, p in np.argwhere(batch.pair_weights > 0)
    ]
    np.testing.assert_allclose(found["beta_dpo/mean"], 0.75 * 0.7 + 0.25 * np.mean(margins), rtol=1e-5)
    np.testing.assert_allclose(found["beta_dpo/std"], 0.75 * 1.9 + 0.25 * np.std(margins, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("mode", ["margin", "fixed", "ls_factor", "batch_implicit"])
def test_other_modes_have_no_statistics(mode):
    assert not task_of(config.Preference(scaling=config.Scaling(mode=mode))).statistics
    assert task_of(config.Preference(scaling=config.Scaling(mode="beta_dpo"))).statistics == dict.fromkeys(STATISTICS, 0.0)


@pytest.mark.parametrize(
    ("scaling", "losses", "said"),
    [
        ({"filtered": 0.2}, {"sigmoid": 1.0}, "beta-DPO (beta by running implicit margins, 0.2 of the pairs left out)"),
        ({}, {"sigmoid": 1.0}, "beta-DPO (beta by running implicit margins)"),
        ({}, LOSSES, "the preference loss sigmoid + 0.5 sft under beta-DPO (beta by running implicit margins)"),
        ({"w": 0.0}, {"sigmoid": 1.0}, "DPO (a fixed beta)"),
    ],
)
def test_the_card_names_the_method(scaling, losses, said):
    described = task_of(config.Preference(losses=losses, scaling=config.Scaling(mode="beta_dpo", **scaling))).describe()
    assert described[0] == f"a policy aligned with {said}"
    assert described[1] == ("" if "fixed" in said else "Method: beta-DPO (arXiv 2407.08639).")
