"""Attention of a lane's programs against float64, whatever an earlier trunk or branch has left in the cache."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mmrlhf_jax.inference.calls import Chunk, Copies
from mmrlhf_jax.inference.lane import Cache, Keys, TrunkKeys
from mmrlhf_jax.inference.lane_attention import BLOCK, attend_branch, attend_trunk, blocks, move_keys, write_step
from mmrlhf_jax.sharding.mesh import make_mesh

HEADS, GROUPS, DIM, TRUNK, BRANCH = 4, 2, 8, 3 * BLOCK, 128
RNG = np.random.default_rng(0)
SLOTS = TRUNK + BRANCH
MESH = make_mesh({}, jax.devices()[:1])
Q, K, V = (RNG.normal(size=(SLOTS, heads, DIM)).astype(np.float32) for heads in (HEADS, GROUPS, GROUPS))


def reference(start: int, end: int, kept: np.ndarray) -> np.ndarray:
    """Rows `start` to `end` of causal attention over the keys at the places `kept`."""
    q, k, v = (x.astype(np.float64) for x in (Q, np.repeat(K, HEADS // GROUPS, 1), np.repeat(V, HEADS // GROUPS, 1)))
    scores = np.einsum("qhd,khd->hqk", q[start:end], k[kept]) / DIM**0.5
    scores = np.where(kept[None] <= np.arange(start, end)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v[kept])


def chunk(size: int, start: int, *, row: int = 0, slot: int = 0, trunk: int = 0, count: int | None = None) -> Chunk:
    return Chunk(*(np.zeros(size, np.int32),) * 3, size if count is None else count, start, row, slot, trunk)


def used(*shape: int) -> np.ndarray:
    """Keys that an earlier text has left, which may be anything."""
    return np.where(np.arange(math.prod(shape)).reshape(shape) % 3, np.float32(1e4), np.float32(np.nan))


def used_values(*shape: int) -> np.ndarray:
    """Values that it has left: finite ones, since no others are written."""
    return np.full(shape, 1e4, np.float32)


def trunk_of(length: int) -> Keys:
    """The keys of a trunk that is computed in chunks; checks what each of them gives, also with all blocks."""
    begun, attend = Keys(used(GROUPS, TRUNK, DIM), used_values(GROUPS, TRUNK, DIM)), jax.jit(attend_trunk)
    for start in range(0, length, 256):
        here, place = chunk(256, start), slice(start, start + 256)
        found, after = attend(Q[place], K[place], V[place], begun, here, blocks(start + 256))
        np.testing.assert_array_equal(found, attend(Q[place], K[place], V[place], begun, here, TRUNK // BLOCK)[0])
        np.testing.assert_allclose(found, reference(start, start + 256, np.arange(start + 256)), atol=2e-6)
        begun = after
    return begun


@pytest.mark.parametrize("length", [1, 256, BLOCK, BLOCK + 1, TRUNK])
def test_chunks_of_a_trunk_and_of_a_branch(length):
    begun = trunk_of(length)
    trunks = TrunkKeys(used(1, 2, GROUPS, DIM, TRUNK), used_values(1, 2, GROUPS, TRUNK, DIM))
    branches = Keys(used(3, GROUPS, BRANCH, DIM), used_values(3, GROUPS, BRANCH, DIM))
    cache = Cache((trunks,), (), (jax.tree.map(lambda x: x[None], begun),))
    moved = lambda row: move_keys(cache, np.array([row]), Copies(np.array([0]), np.array([0]))).trunks[0]
    jax.tree.map(np.testing.assert_array_equal, moved(2), trunks)
    placed = jax.tree.map(lambda x: x[0], moved(1))
    kept = np.concatenate([np.arange(length), np.arange(TRUNK, SLOTS)])
    for start in (0, 64):
        place = slice(TRUNK + start, TRUNK + start + 64)
        here = chunk(64, start, row=1, slot=2, trunk=length)
        arguments = Q[place], K[place], V[place], placed, branches, here
        found, after = jax.jit(attend_branch)(*arguments, blocks(length))
        np.testing.assert_array_equal(found, jax.jit(attend_branch)(*arguments, TRUNK // BLOCK)[0])
        np.testing.assert_allclose(found, reference(place.start, place.stop, kept), atol=2e-6)
        branches = after
    np.testing.assert_array_equal(branches.k[:2], used(3, GROUPS, BRANCH, DIM)[:2])


def test_a_group_without_work_keeps_its_keys():
    begun = Keys(RNG.normal(size=(GROUPS, TRUNK, DIM)), RNG.normal(size=(GROUPS, TRUNK, DIM)))
    _, after = attend_trunk(Q[:64], K[:64], V[:64], begun, chunk(64, 0, count=0), 1)
    branches = jax.tree.map(lambda x: x[None], begun)
    _, others = attend_branch(
        Q[:64],
        K[:64],
        V[:64],
        TrunkKeys(used(1, GROUPS, DIM, 64), used(1, GROUPS, 64, DIM)),
        branches,
        chunk(64, 0, count=0),
        1,
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), (after, others), (begun, branches))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.long
def test_a_value_that_is_not_finite_is_never_written_and_reaches_whoever_sees_it(bad):
    """Of one head of token 3: attention of the tokens before it and of the other head is as it was."""
    begun, v, here = Keys(*(np.zeros((GROUPS, 64, DIM), np.float32),) * 2), V[:64].copy(), chunk(64, 0)
    wanted, _ = attend_trunk(Q[:64], K[:64], v, begun, here, 1)
    v[3, 0, 5] = bad
    found, after = attend_trunk(Q[:64], K[:64], v, begun, here, 1)
    assert np.isfinite(after.v).all() and np.isnan(after.k[0, 3]).all() and np.isfinite(np.delete(after.k, 3, axis=1)).all()
    heads = HEADS // GROUPS  # queries of the first head of keys
    assert np.isnan(found[3:, :heads]).all()
    np.testing.assert_array_equal(found[:3], wanted[:3])
    np.testing.assert_array_equal(found[:, heads:], wanted[:, heads:])
    branches, placed = jax.tree.map(lambda x: x[None, None], begun), NamedSharding(MESH, PartitionSpec(*(None,) * 5))
    new = Keys(K[None, None, 0], V[None, None, 0].copy())
    new.v[0, 0, 1, 2] = bad
    step = write_step(branches, new, np.array([[7]], np.int32), placed)
    assert np.isfinite(step.v).all() and np.isnan(step.k[0, 0, 1, 7]).all() and np.isfinite(step.k[0, 0, 0]).all()
