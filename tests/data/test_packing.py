"""The planner: every group in exactly one row, no budget exceeded, a pure function of its arguments, and full rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf_jax.data.packing import auto_budget, fill, plan_rows
from mmrlhf_jax.data.rows import Budget
from tests.benchmarks.data_scale import PROMPTS, approximate_sizes

RESOURCES = 6


def mm_rlhf_like(groups: int, seed: int = 0) -> np.ndarray:
    """Sizes as in the released set: 729 to 7290 image tokens (videos 1961), 3 to 5 responses of 10 to 500 tokens."""
    rng = np.random.default_rng(seed)
    visual = rng.choice([1485, 1961, 2929, 4665, 5130, 7309], groups, p=[0.2, 0.17, 0.28, 0.2, 0.05, 0.1])
    responses = rng.choice([3, 4, 5], groups, p=[0.15, 0.83, 0.02])
    lengths = rng.lognormal(4.4, 0.9, (groups, 5)).clip(5, 600).astype(int) * (np.arange(5) < responses[:, None])
    tiles = (visual // 729).clip(1, 10)
    slots = visual + 80 + lengths.sum(axis=1)
    return np.stack([slots, tiles, visual, lengths.sum(axis=1), responses, responses * (responses - 1) // 2], axis=1)


sizes = st.lists(st.tuples(*[st.integers(0, 20)] * RESOURCES), max_size=60).map(
    lambda x: np.asarray(x, np.int64).reshape(-1, RESOURCES)
)


@settings(max_examples=200, deadline=None)
@given(sizes, st.integers(0, 5))
def test_every_group_is_in_exactly_one_row_and_no_row_exceeds_a_budget(sizes, epoch):
    budget = np.full(RESOURCES, 30)
    rows = plan_rows(sizes, budget, seed=0, epoch=epoch)
    assert sorted(np.concatenate(rows).tolist() if rows else []) == list(range(len(sizes)))
    for row in rows:
        assert (sizes[row].sum(axis=0) <= budget).all()


def test_a_plan_depends_on_seed_and_epoch_and_on_nothing_else():
    sizes, budget = mm_rlhf_like(500), np.asarray([16384, 40, 16384, 8192, 64, 128])

    def plan(seed, epoch):
        return [row.tolist() for row in plan_rows(sizes, budget, seed=seed, epoch=epoch)]

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3)
    assert plan(1, 2) != plan(2, 2)


@pytest.fixture(scope="module")
def mixed():
    """Pictures of one to nine tiles and videos of ten frames in the released set's proportions, as `data_scale` builds them."""
    return approximate_sizes(PROMPTS)


@pytest.mark.parametrize("slots", [8192, 16384])
@pytest.mark.parametrize("data", ["alike", "mixed"])
def test_rows_are_at_least_92_percent_full_on_lengths_like_mm_rlhfs(slots, data, mixed):
    """`mixed` is where tiles and slots compete: a video takes as many tiles as a picture of three times its tokens."""
    sizes = mixed if data == "mixed" else mm_rlhf_like(4000)
    sizes = sizes[sizes[:, 0] <= slots]
    budget = auto_budget(sizes, slots)
    assert fill(sizes, plan_rows(sizes, budget, seed=0, epoch=0), slots) >= 0.92
    tiles = Budget.names().index("tiles")
    assert budget[tiles] <= 1.4 * slots * sizes[:, tiles].sum() / sizes[:, 0].sum()  # and not for the price of empty tiles


@pytest.mark.parametrize(("slots", "full"), [(8192, 0.921), (16384, 0.994)])
def test_rows_with_videos_of_32_frames_are_as_full_as_measured(slots, full):
    """The default number of frames: 6,273 tokens, beside which a row of 8192 slots has no room for a picture."""
    sizes = approximate_sizes(PROMPTS, frames=32)
    budget = auto_budget(sizes, slots)
    assert (sizes <= budget).all()
    assert fill(sizes, plan_rows(sizes, budget, seed=0, epoch=0), slots) >= full


def test_a_row_with_the_longest_video_has_room_for_pictures():
    video, picture = [7000, 32, 6273, 600, 4, 6], [3000, 3, 2700, 250, 4, 6]
    sizes = np.asarray([video] * 5 + [picture] * 95)
    rows = plan_rows(sizes, auto_budget(sizes, 16384), seed=0, epoch=0)
    assert max(len(row) for row in rows if (row < 5).any()) >= 3


@pytest.mark.long
def test_thirty_thousand_groups_are_planned_in_seconds(mixed):
    sizes = np.concatenate([mixed, mixed])[:30_000]
    for slots in (8192, 16384):
        budget = auto_budget(sizes, slots)
        started = time.process_time()
        plan_rows(sizes, budget, seed=0, epoch=0)
        assert time.process_time() - started < 5


def test_neighbouring_rows_and_groups_of_a_row_are_unrelated_to_the_order_of_the_data(mixed):
    sizes = mixed[:8000]
    rows = plan_rows(sizes, auto_budget(sizes, 16384), seed=0, epoch=0)
    firsts = np.asarray([row[0] for row in rows], float)
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.1
    seconds = np.asarray([row[1] for row in rows if len(row) > 1], float)
    assert abs(np.corrcoef(firsts[[len(row) > 1 for row in rows]], seconds)[0, 1]) < 0.1
    tokens = np.asarray([sizes[row, 0].mean() for row in rows])
    assert abs(np.corrcoef(tokens[:-1], tokens[1:])[0, 1]) < 0.1


def test_groups_that_share_a_row_share_none_in_the_next_epoch(mixed):
    sizes = mixed[:8000]
    budget = auto_budget(sizes, 16384)
    together = [{(a, b) for row in plan_rows(sizes, budget, seed=0, epoch=epoch) for a in row for b in row} for epoch in (0, 1)]
    own = len(sizes)  # every group with itself
    assert len(together[0] & together[1]) - own < 0.01 * (len(together[0]) - own)


def test_a_group_over_budget_is_refused():
    with pytest.raises(ValueError, match="over-budget"):
        plan_rows(np.full((1, RESOURCES), 9), np.full(RESOURCES, 8), seed=0, epoch=0)
