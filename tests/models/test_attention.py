"""Attention under `visible_until` is what its one line says, by every implementation. Oracle: NumPy, float64."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrlhf_jax.models.attention import attention, banded_attention, full_attention, pallas_tpu, segment_attention, xla
from mmrlhf_jax.models.attention.parts import attend_part, join
from tests.models.trees import oracle, oracle_gradients, random_tree, visible

SLOTS = 40
WAYS = ["xla, dense", "xla, blocks", "xla, blocks, recomputed", "pallas"]


@functools.cache
def example(heads: int, kv_heads: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    q, cotangent = (rng.normal(size=(2, SLOTS, heads, 8)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(2, SLOTS, kv_heads, 8)).astype(np.float32) for _ in range(2))
    return q, k, v, np.stack([random_tree(rng, SLOTS), random_tree(rng, SLOTS)]), cotangent


@functools.cache
def values_and_gradients(way: str, full: bool = False):
    """Compiled apart for each way, since block sizes are read while tracing. The kernel runs interpreted here."""
    backend = "pallas" if way == "pallas" else "xla"

    @jax.jit
    def run(q, k, v, until, cotangent):
        def attend(q, k, v):
            return full_attention(q, k, v, backend=backend) if full else attention(q, k, v, until, backend=backend)

        with jax.default_matmul_precision("highest"):
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(cotangent)

    return run


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """The ways through a row, in blocks that do not divide it: 12 and 16 slots of 40."""
    monkeypatch.setattr(xla, "DENSE_LIMIT", SLOTS if request.param == "xla, dense" else SLOTS - 1)
    monkeypatch.setattr(xla, "REMAT_LIMIT", SLOTS if request.param == "xla, blocks, recomputed" else SLOTS + 1)
    monkeypatch.setattr(xla, "QUERY_BLOCKS", (12, 12))
    monkeypatch.setattr(pallas_tpu, "BLOCKS", (16,))
    monkeypatch.setattr(pallas_tpu, "WHOLE_ROW", 0)
    return request.param


def assert_close(actual, expected):
    """Within 1e-5 of the largest entry."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("heads", "kv_heads", "seeds"), [(6, 2, range(4)), (5, 1, range(1))])
@pytest.mark.long
def test_values_and_gradients_are_the_oracles_under_random_trees(way, heads, kv_heads, seeds):
    for seed in seeds:
        q, k, v, until, cotangent = example(heads, kv_heads, seed)
        out, gradients = values_and_gradients(way)(q, k, v, until, cotangent)
        assert_close(out, oracle(q, k, v, visible(until)))
        for actual, expected in zip(gradients, oracle_gradients(q, k, v, visible(until), cotangent), strict=True):
            assert_close(actual, expected)


def test_full_attention_lets_every_query_see_every_key(way):
    q, k, v, _, cotangent = example(4, 4)
    out, gradients = values_and_gradients(way, full=True)(q, k, v, None, cotangent)
    everything = np.ones((2, SLOTS, SLOTS), bool)
    assert_close(out, oracle(q, k, v, everything))
    for actual, expected in zip(gradients, oracle_gradients(q, k, v, everything, cotangent), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["xla", "pallas"])
def test_no_rows_are_attended_to_as_no_rows(backend):
    """A batch of text alone has no tiles."""
    q, k = (np.zeros((0, SLOTS, heads, 8), np.float32) for heads in (2, 1))
    out, pull = jax.vjp(lambda q, k, v: full_attention(q, k, v, backend=backend), q, k, k)
    assert [x.shape for x in (out, *pull(out))] == [q.shape, q.shape, k.shape, k.shape]


def segments(seed: int, most: int = SLOTS) -> np.ndarray:
    """int32[2, SLOTS]: the ends of random segments of at most so many slots; the last slots are segments of their own."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(2):
        lengths = []
        while sum(lengths) < SLOTS - 3:
            lengths.append(int(rng.integers(1, min(most, SLOTS - 3 - sum(lengths)) + 1)))
        rows.append(np.repeat(np.cumsum([*lengths, 1, 1, 1]), [*lengths, 1, 1, 1]))
    return np.stack(rows).astype(np.int32)


@pytest.mark.parametrize("seed", range(3))
def test_in_segments_every_query_sees_the_keys_of_its_own(way, seed):
    q, k, v, _, cotangent = example(4, 2)
    until = segments(seed)
    backend = "pallas" if way == "pallas" else "xla"

    @jax.jit
    def run(q, k, v, until, cotangent):
        with jax.default_matmul_precision("highest"):
            out, pull = jax.vjp(lambda q, k, v: segment_attention(q, k, v, until, backend=backend), q, k, v)
            return out, pull(cotangent)

    out, gradients = run(q, k, v, until, cotangent)
    same = until[:, :, None] == until[:, None, :]
    assert_close(out, oracle(q, k, v, same))
    for actual, expected in zip(gradients, oracle_gradients(q, k, v, same, cotangent), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("seed", range(3))
def test_short_segments_are_attended_to_in_bands(seed):
    """Wherever they begin."""
    q, k, v, _, cotangent = example(3, 3)
    until = segments(seed, most=8)

    @jax.jit
    def run(q, k, v, until, cotangent):
        with jax.default_matmul_precision("highest"):
            out, pull = jax.vjp(lambda q, k, v: banded_attention(q, k, v, until, 8), q, k, v)
            return out, pull(cotangent)

    out, gradients = run(q, k, v, until, cotangent)
    same = until[:, :, None] == until[:, None, :]
    assert_close(out, oracle(q, k, v, same))
    for actual, expected in zip(gradients, oracle_gradients(q, k, v, same, cotangent), strict=True):
        assert_close(actual, expected)


@pytest.mark.long
def test_bfloat16_is_softmaxed_in_float32(way):
    q, k, v, until, cotangent = (jnp.asarray(x, jnp.bfloat16 if x.dtype == np.float32 else x.dtype) for x in example(6, 2))
    out, gradients = values_and_gradients(way)(q, k, v, until, cotangent)
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(out.astype(jnp.float32), oracle(q, k, v, visible(until)), atol=0.04)


def test_padding_sees_itself_and_is_seen_by_nothing(way):
    q, k, v, _, cotangent = example(6, 2)
    run = values_and_gradients(way)
    until = np.where(np.arange(SLOTS) < np.array([[17], [40]]), [[17], [40]], np.arange(SLOTS) + 1).astype(np.int32)
    assert until[0, :17].tolist() == [17] * 17 and until[0, 17:].tolist() == list(range(18, 41))
    out, _ = run(q, k, v, until, cotangent)
    np.testing.assert_allclose(out[0, 17:], np.repeat(v[0, 17:], 3, axis=1), atol=1e-6)
    changed, _ = run(q, np.where(np.arange(SLOTS)[None, :, None, None] >= 17, 9.0, k).astype(np.float32), v, until, cotangent)
    np.testing.assert_array_equal(changed[0, :17], out[0, :17])


@pytest.mark.parametrize("cut", [0, 1, 17, SLOTS - 1])
@pytest.mark.parametrize("heads", [(6, 2), (3, 3), (4, 1)])
def test_keys_in_two_places_are_attended_to_as_in_one(heads, cut):
    """Also where one place has nothing for a query, and whatever stands in slots that are not visible."""
    q, k, v, _, _ = example(*heads)
    whole = jax.jit(attention)(q, k, v, np.full((2, SLOTS), SLOTS, np.int32))
    visible = np.broadcast_to(np.tril(np.ones((SLOTS, SLOTS), bool)), (2, SLOTS, SLOTS))
    k, v = (np.asarray(x).swapaxes(1, 2) for x in (k, v))
    first, second = np.arange(SLOTS) < cut, np.arange(SLOTS) >= cut
    spoilt = lambda x, kept: np.where(kept[:, None], x, 1e4)

    @jax.jit
    def apart(q, k1, v1, k2, v2):
        k1, k2 = (x.swapaxes(2, 3) for x in (k1, k2))
        return join(attend_part(q, k1, v1, visible & first), attend_part(q, k2, v2, visible & second))

    found = apart(q, spoilt(k, first), spoilt(v, first), spoilt(k, second), spoilt(v, second))
    np.testing.assert_allclose(found, whole, atol=2e-6)


ON_A_MESH = """
import jax, numpy as np
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.attention import attention, backends, pallas_tpu
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
pallas_tpu.BLOCKS = (8,)
backends.INTERPRETED = backends.KERNELS[PLATFORM]
rng = np.random.default_rng(0)
q, k, v, cotangent = (rng.normal(size=(4, 16, heads, 16)).astype(np.float32) for heads in (4, 2, 2, 4))
until = np.full((4, 16), 16, np.int32)
def run(backend):
    def both(q, k, v):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, until, backend=backend), q, k, v)
        return out, pull(cotangent)
    return jax.jit(both)(q, k, v)
alone = run("xla")
def same(axes, backend):
    with use_mesh(make_mesh(axes)):
        shared = run(backend)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5, err_msg=f"{axes} {backend}")
    return shared[0]
out = same({"data": 2, "fsdp": 2, "tensor": 2}, "pallas")
assert out.sharding.shard_shape(out.shape) == (1, 16, 2, 16), out.sharding
same({"fsdp": 2, "tensor": 2, "context": 2}, "pallas")
for axes in ({"tensor": 8}, {"fsdp": 8}):
    try:
        same(axes, "pallas")
    except UserError as error:
        assert "model.attention: pallas cannot share 4 rows and 2 key/value heads over the mesh" in str(error), error
    else:
        raise AssertionError("a kernel that cannot be shared")
    backends._platform = lambda: PLATFORM  # where `auto` would take the kernel, which does not run here
    same(axes, "auto")
    backends._platform = lambda: "cpu"
"""


@pytest.mark.long
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_a_mesh_changes_no_value_and_a_kernel_that_it_cannot_hold_is_refused_or_left_to_xla(platform):
    """The kernels of both platforms, interpreted."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    script = f"PLATFORM = {platform!r}\n" + ON_A_MESH
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
