"""Tokens are chosen as by transformers' warpers, from the right distribution, and independently of company."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.sampling import Draws, Sampling, choose, keep

VOCABULARY = 257


def draws(count: int = 1, **settings) -> Draws:
    """Draws of `count` sequences with these parameters, each one number or an array."""
    defaults = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "seed": 0, "sample": 0, "position": 0}
    kinds = {"temperature": np.float32, "top_p": np.float32, "min_p": np.float32, "seed": np.uint32}
    return Draws(
        **{name: np.full(count, settings.get(name, value), kinds.get(name, np.int32)) for name, value in defaults.items()}
    )


def logits(rows: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, VOCABULARY)).astype(np.float32) * np.float32(scale)


FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.03},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.1},
    {"temperature": 0.3, "top_k": 9, "top_p": 0.7, "min_p": 0.02},
    {"temperature": 2.5, "top_k": 100, "top_p": 0.97},
]


@pytest.mark.parametrize("how", FILTERS, ids=str)
@pytest.mark.parametrize("scale", [0.2, 3.0, 30.0])
def test_filters_keep_what_transformers_keeps(how, scale):
    torch = pytest.importorskip("torch")
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    values = logits(16, seed=3, scale=scale)
    warpers = [TemperatureLogitsWarper(how.get("temperature", 1.0))]
    warpers += [TopKLogitsWarper(min(how["top_k"], VOCABULARY))] if "top_k" in how else []
    warpers += [TopPLogitsWarper(how["top_p"])] if "top_p" in how else []
    warpers += [MinPLogitsWarper(how["min_p"])] if "min_p" in how else []
    theirs = torch.from_numpy(values)
    for warper in warpers:
        theirs = warper(None, theirs)
    scaled = values / np.float32(how.get("temperature", 1.0))
    found = np.asarray(keep(jnp.asarray(scaled), draws(16, **how)))
    np.testing.assert_array_equal(found, np.isfinite(theirs.numpy()))
    assert found.any(axis=-1).all()


def test_equal_logits_are_kept_or_left_out_together():
    values = np.asarray([[2.0, 1.0, 1.0, 0.0]], np.float32)
    assert np.asarray(keep(jnp.asarray(values), draws(top_k=2)))[0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 5, "top_p": 0.9}], ids=str)
@pytest.mark.long
def test_samples_have_the_distribution(how):
    """A chi-squared test over 40,000 positions of one sequence."""
    values, count = logits(1, seed=1, scale=1.5), 40_000
    scaled = values / np.float32(how.get("temperature", 1.0))
    kept = np.asarray(keep(jnp.asarray(scaled), draws(**how)))[0]
    wanted = np.where(kept, np.exp(scaled[0].astype(np.float64)), 0)
    wanted /= wanted.sum()
    many = draws(count, **how)._replace(position=np.arange(count, dtype=np.int32))
    found, logps = choose(jnp.broadcast_to(values, (count, VOCABULARY)), many)
    seen = np.bincount(np.asarray(found), minlength=VOCABULARY)
    assert seen[~kept].sum() == 0
    common = wanted * count >= 5
    rest = seen[~common].sum(), wanted[~common].sum() * count
    chi = ((seen - wanted * count)[common] ** 2 / (wanted * count)[common]).sum() + (rest[0] - rest[1]) ** 2 / max(rest[1], 1)
    freedom = common.sum()
    assert chi < freedom + 5 * np.sqrt(2 * freedom)
    exact = jax.nn.log_softmax(values[0])
    np.testing.assert_allclose(logps, exact[np.asarray(found)], rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_sequence_gets_the_same_tokens_alone_and_in_company():
    values = logits(32, seed=5)
    rng = np.random.default_rng(0)
    many = Draws(
        temperature=np.where(rng.random(32) < 0.3, 0, rng.uniform(0.2, 2, 32)).astype(np.float32),
        top_p=np.where(rng.random(32) < 0.5, 1, rng.uniform(0.1, 1, 32)).astype(np.float32),
        min_p=np.where(rng.random(32) < 0.5, 0, rng.uniform(0, 0.3, 32)).astype(np.float32),
        top_k=np.where(rng.random(32) < 0.5, 0, rng.integers(1, 50, 32)).astype(np.int32),
        seed=rng.integers(0, 2**32, 32, dtype=np.uint32),
        sample=rng.integers(0, 9, 32, dtype=np.int32),
        position=rng.integers(0, 900, 32, dtype=np.int32),
    )
    together, logps = choose(jnp.asarray(values), many)
    order = rng.permutation(32)
    shuffled, _ = choose(jnp.asarray(values[order]), jax.tree.map(lambda x: x[order], many))
    np.testing.assert_array_equal(np.asarray(together)[order], shuffled)
    for number in range(32):
        alone, logp = choose(jnp.asarray(values[number : number + 1]), jax.tree.map(lambda x, n=number: x[n : n + 1], many))
        assert int(alone[0]) == int(together[number])
        assert float(logp[0]) == pytest.approx(float(logps[number]), abs=1e-5)
    greedy = many.temperature == 0
    np.testing.assert_array_equal(np.asarray(together)[greedy], values[greedy].argmax(axis=-1))


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [1e-9, 1e-30, 1e-40, 1e-46, 5e-324])
def test_the_smallest_values_leave_the_likeliest_token(name, value):
    values = logits(32, seed=2, scale=30.0)
    found, _ = jax.jit(choose)(jnp.asarray(values), draws(32, **{name: value})._replace(position=np.arange(32, dtype=np.int32)))
    np.testing.assert_array_equal(found, values.argmax(axis=-1))


@pytest.mark.parametrize("name", ["seed", "sample", "position"])
def test_other_numbers_give_other_tokens(name):
    values = np.broadcast_to(logits(1, scale=0.5), (64, VOCABULARY))
    found, _ = choose(jnp.asarray(values), draws(64)._replace(**{name: np.arange(64).astype(getattr(draws(), name).dtype)}))
    assert len(set(np.asarray(found).tolist())) > 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature must be a number from 0 to 100, found -1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"top_p": 0}, "top_p must be a number above 0 to 1, found 0"),
        ({"top_p": 1.5}, "top_p must be a number above 0 to 1"),
        ({"min_p": float("inf")}, "min_p must be a number from 0 to 1"),
        ({"top_k": -1}, "top_k must be a whole number from 0"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295"),
        ({"seed": "1"}, "seed must be a whole number"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)
