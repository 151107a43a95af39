"""Attention under `visible_until` is what its one line says, in one piece or block by block. Oracle: NumPy, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.models import attention as attention_module
from mmrlhf_jax.models.attention import attend_cache, attention, causal_visible_until

SLOTS = 40


def random_tree(rng: np.random.Generator) -> np.ndarray:
    """`visible_until` of a row: groups of a trunk and branches, some branches trees themselves, then padding."""
    until = np.arange(SLOTS) + 1
    start = 0
    while start < SLOTS - 4 and (end := start + int(rng.integers(3, 14))) <= SLOTS:
        fill(until, start, end, rng)
        start = end
    return until.astype(np.int32)


def fill(until: np.ndarray, start: int, end: int, rng: np.random.Generator) -> None:
    """A trunk from `start` whose keys last until `end`, and branches in what is left."""
    trunk = start + int(rng.integers(1, end - start + 1))
    until[start:trunk] = end
    while trunk < end:
        branch = trunk + int(rng.integers(1, end - trunk + 1))
        fill(until, trunk, branch, rng)
        trunk = branch


def oracle(q, k, v, until):
    """float64, one query and head at a time: q attends k iff k <= q < until[k]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = [j for j in range(i + 1) if i < until[b, j]]
        scores = k[b, keys, h // group] @ q[b, i, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights / weights.sum() @ v[b, keys, h // group]
    return out


def oracle_gradients(q, k, v, until, cotangent):
    """float64 gradients of sum(cotangent * attention), by the softmax's own derivative."""
    q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
    group, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, i, h in np.ndindex(q.shape[:3]):
        keys, g = [j for j in range(i + 1) if i < until[b, j]], h // group
        scores = scale * (k[b, keys, g] @ q[b, i, h])
        p = np.exp(scores - scores.max())
        p /= p.sum()
        dp = v[b, keys, g] @ cotangent[b, i, h]
        ds = scale * p * (dp - p @ dp)
        dq[b, i, h] += ds @ k[b, keys, g]
        dk[b, keys, g] += ds[:, None] * q[b, i, h]
        dv[b, keys, g] += p[:, None] * cotangent[b, i, h]
    return dq, dk, dv


@functools.cache
def example(heads: int, kv_heads: int):
    rng = np.random.default_rng(heads)
    q, cotangent = (rng.normal(size=(2, SLOTS, heads, 8)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(2, SLOTS, kv_heads, 8)).astype(np.float32) for _ in range(2))
    return q, k, v, np.stack([random_tree(rng), random_tree(rng)]), cotangent


@functools.cache
def values_and_gradients(way: str):
    """Compiled apart for each way, since the way is chosen while tracing."""

    @jax.jit
    def run(q, k, v, until, cotangent):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, until), q, k, v)
        return out, pull(cotangent)

    return run


@pytest.fixture(params=["dense", "blocks", "blocks, recomputed"])
def run(request, monkeypatch):
    """Values and gradients of this project's attention, on each of its ways through a row. 12 does not divide 40."""
    monkeypatch.setattr(attention_module, "DENSE_LIMIT", SLOTS if request.param == "dense" else SLOTS - 1)
    monkeypatch.setattr(attention_module, "REMAT_LIMIT", SLOTS if request.param == "blocks, recomputed" else SLOTS + 1)
    monkeypatch.setattr(attention_module, "QUERY_BLOCKS", (12, 12))
    return values_and_gradients(request.param)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (5, 1)])
def test_values_and_gradients_are_the_oracles_under_random_trees(run, heads, kv_heads):
    q, k, v, until, cotangent = example(heads, kv_heads)
    out, gradients = run(q, k, v, until, cotangent)
    np.testing.assert_allclose(out, oracle(q, k, v, until), atol=2e-6)
    for actual, expected in zip(gradients, oracle_gradients(q, k, v, until, cotangent), strict=True):
        np.testing.assert_allclose(actual, expected, atol=5e-6)


def test_bfloat16_is_softmaxed_in_float32():
    q, k, v, until, _ = (jnp.asarray(x, jnp.bfloat16 if x.dtype == np.float32 else x.dtype) for x in example(6, 2))
    out = jax.jit(attention)(q, k, v, until)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), oracle(q, k, v, until), atol=0.04)


def test_padding_sees_itself_and_is_seen_by_nothing(run):
    q, k, v, _, cotangent = example(6, 2)
    until = np.asarray(causal_visible_until(SLOTS, jnp.array([17, 40])))
    assert until[0, :17].tolist() == [17] * 17 and until[0, 17:].tolist() == list(range(18, 41))
    out, _ = run(q, k, v, until, cotangent)
    np.testing.assert_allclose(out[0, 17:], np.repeat(v[0, 17:], 3, axis=1), atol=1e-6)
    changed, _ = run(q, np.where(np.arange(SLOTS)[None, :, None, None] >= 17, 9.0, k), v, until, cotangent)
    np.testing.assert_array_equal(changed[0, :17], out[0, :17])


def test_a_cached_step_is_the_last_query_of_the_whole():
    q, k, v, _, _ = example(6, 2)
    until = np.full((2, SLOTS), SLOTS, np.int32)
    whole = jax.jit(attention)(q, k, v, until)
    step = jax.jit(attend_cache)(q[:, -1:], k, v, np.ones((2, SLOTS), bool))
    np.testing.assert_allclose(step[:, 0], whole[:, -1], atol=1e-6)
