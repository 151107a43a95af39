"""The kernels visit exactly the blocks in which some pair is visible, once each. Oracle: the mask itself."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from mmrlhf_jax.models.attention import attention, backends, pallas_gpu, pallas_tpu
from mmrlhf_jax.models.attention.pallas_gpu import Blocks, KernelBlocks
from mmrlhf_jax.models.attention.visibility import (
    FIRST,
    FULL,
    HIDDEN,
    LAST,
    PARTIAL,
    WHOLE,
    block_kinds,
    block_lists,
    by_key,
    by_query,
    most_pairs,
    segment_starts,
)
from tests.models.trees import random_tree, visible

SLOTS, BLOCK = 96, 8
BLOCKS = SLOTS // BLOCK


classify = jax.jit(partial(block_kinds, block=BLOCK), static_argnames="causal")
listed = {order: jax.jit(partial(order, causal=True)) for order in (by_query, by_key)}


def by_the_mask(until: np.ndarray, causal: bool) -> np.ndarray:
    """HIDDEN, PARTIAL or FULL, by counting the visible pairs of each block."""
    return rectangles_by_the_mask(visible(until, causal), BLOCK, BLOCK)


def rectangles_by_the_mask(mask: np.ndarray, queries: int, keys: int) -> np.ndarray:
    """The same for blocks of other sizes. Pairs beyond the row are hidden."""
    rows, length, _ = mask.shape
    mask = np.pad(mask, ((0, 0), (0, -length % queries), (0, -length % keys)))
    mask = mask.reshape(rows, mask.shape[1] // queries, queries, mask.shape[2] // keys, keys)
    pairs = mask.sum(axis=(2, 4))
    return np.where(pairs == queries * keys, FULL, np.where(pairs > 0, PARTIAL, HIDDEN))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Small and large groups, packings of plain sequences, a whole row, padding only."""
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, SLOTS, groups) for groups in [(3, 14), (20, 60), (90, 96)] for _ in range(20)]
    packed = np.repeat([16, 40, 41, 96], [16, 24, 1, 55])
    return np.stack([*trees, packed, np.full(SLOTS, SLOTS), np.arange(SLOTS) + 1]).astype(np.int32)


def test_the_kind_of_every_block_is_that_of_its_mask(rows):
    kinds = classify(rows, causal=True)
    np.testing.assert_array_equal(kinds, by_the_mask(rows, causal=True))


def test_blocks_between_segments_are_hidden():
    rng = np.random.default_rng(0)
    ends = [np.unique([*rng.choice(SLOTS, count, replace=False), SLOTS]) for count in (1, 2, 5, 20, 60)]
    ends = [each[each > 0] for each in ends]
    until = np.stack([np.repeat(each, np.diff(each, prepend=0)) for each in ends]).astype(np.int32)
    since = np.asarray(segment_starts(until))
    same = until[:, :, None] == until[:, None, :]
    np.testing.assert_array_equal(since, np.argmax(same, axis=2))
    kinds = jax.jit(lambda until, since: block_kinds(until, BLOCK, causal=False, since=since))(until, since)
    np.testing.assert_array_equal(kinds, rectangles_by_the_mask(same, BLOCK, BLOCK))


def test_without_order_only_padding_keys_are_hidden():
    until = np.where(np.arange(SLOTS) < 90, np.iinfo(np.int32).max, 0)[None].astype(np.int32)
    np.testing.assert_array_equal(classify(until, causal=False), by_the_mask(until, causal=False))


@pytest.mark.parametrize("order", [by_query, by_key])
def test_a_work_list_has_every_visible_block_once_outer_block_by_outer_block(rows, order):
    kinds = by_the_mask(rows, causal=True)
    work = listed[order](kinds)
    sides = kinds if order is by_query else kinds.swapaxes(1, 2)
    expected = np.argwhere(sides != HIDDEN)
    count = int(work.count)
    assert count == len(expected)
    outer, inner, flags = (np.asarray(x)[:count] for x in (work.outer, work.inner, work.flags))
    np.testing.assert_array_equal(np.stack([outer // BLOCKS, outer % BLOCKS, inner], axis=1), expected)
    np.testing.assert_array_equal(flags & WHOLE != 0, sides[tuple(expected.T)] == FULL)
    starts = np.flatnonzero(np.diff(outer, prepend=-1))
    assert np.flatnonzero(flags & FIRST).tolist() == starts.tolist()
    assert np.flatnonzero(flags & LAST).tolist() == [*(starts[1:] - 1), count - 1]


def test_the_rectangle_between_branches_costs_nothing():
    """A trunk of 4 blocks and 4 branches of 2 blocks each: every branch visits the trunk and itself."""
    until = np.full(SLOTS, SLOTS)
    for start in range(4 * BLOCK, SLOTS, 2 * BLOCK):
        until[start : start + 2 * BLOCK] = start + 2 * BLOCK
    kinds = classify(until[None].astype(np.int32), causal=True)
    triangle = lambda n: n * (n + 1) // 2
    assert int(listed[by_query](kinds).count) == triangle(4) + 4 * (2 * 4 + triangle(2)) < triangle(BLOCKS)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [SLOTS, SLOTS - 5])
@pytest.mark.parametrize(("queries", "keys"), [(8, 8), (16, 8), (8, 16), (32, 16), (4, 32)])
def test_lists_have_exactly_the_blocks_with_a_visible_pair_and_those_without_a_mask_first(rows, queries, keys, length, causal):
    """By the kernels' own preparation of a row; the padding that it adds is seen by nothing."""
    until = np.minimum(rows[:, :length], length) if causal else np.full((2, length), np.iinfo(np.int32).max, np.int32)
    expected = rectangles_by_the_mask(visible(until, causal), queries, keys)
    padded, found = jax.jit(partial(pallas_gpu.kinds_of, queries=queries, keys=keys, causal=causal))(until)
    assert padded.shape[1] == length + -length % keys
    np.testing.assert_array_equal(found, expected)
    assert expected.astype(bool).sum(axis=(1, 2)).max() * queries * keys <= most_pairs(length, queries, keys, causal=causal)
    for sides in (expected, expected.swapaxes(1, 2)):
        inner, counts = (np.asarray(x) for x in jax.jit(block_lists)(sides))
        assert counts[..., 1].sum() == (expected != HIDDEN).sum()  # blocks visited = blocks with a visible pair
        for row, block in np.ndindex(sides.shape[:2]):
            whole, seen = counts[row, block]
            assert inner[row, block, :whole].tolist() == np.flatnonzero(sides[row, block] == FULL).tolist()
            assert inner[row, block, whole:seen].tolist() == np.flatnonzero(sides[row, block] == PARTIAL).tolist()


def test_a_trunk_that_fills_the_row_has_the_most_pairs():
    for length, queries, keys in [(96, 16, 8), (91, 8, 16), (91, 32, 16), (96, 8, 8)]:
        until = np.full((1, length), length, np.int32)
        seen = rectangles_by_the_mask(visible(until), queries, keys) != HIDDEN
        assert seen.sum() * queries * keys == most_pairs(length, queries, keys, causal=True)
        blocks = seen.size * queries * keys
        assert blocks == most_pairs(length, queries, keys, causal=False)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_a_block_that_is_hidden_is_not_touched(monkeypatch, platform):
    """The first branch is NaN; what its sibling is and gives its queries is the same as without."""
    monkeypatch.setattr(pallas_tpu, "BLOCKS", (BLOCK,))
    monkeypatch.setattr(pallas_gpu, "_chosen", lambda dim, dtype: KernelBlocks(*[Blocks(BLOCK, BLOCK, 4, 1)] * 3))
    monkeypatch.setattr(backends, "INTERPRETED", backends.KERNELS[platform])
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (rng.normal(size=(1, 24, heads, 8)).astype(np.float32) for heads in (2, 1, 1, 2))
    until = np.repeat([24, 16, 24], BLOCK)[None].astype(np.int32)

    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(lambda q: attention(q, k, v, until, backend="pallas"), q)
        return out, pull(cotangent)[0]

    poisoned = [np.where(np.repeat([False, True, False], BLOCK)[:, None, None], np.nan, x) for x in (q, k, v)]
    for clean, spoilt in zip(run(q, k, v), run(*poisoned), strict=True):
        np.testing.assert_array_equal(spoilt[:, 16:], clean[:, 16:])
        np.testing.assert_array_equal(spoilt[:, :8], clean[:, :8])
        assert np.isnan(spoilt[:, 8:16]).all()
