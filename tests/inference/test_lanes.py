"""Lanes are few: parts of one data set share them, and they are as large as there is room for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrlhf_jax.inference.lane import Lane
from mmrlhf_jax.inference.lanes import lanes_for, serving_lane
from mmrlhf_jax.inference.requests import Branch, Tree


def tree(trunk: int, branches: int, length: int) -> Tree:
    """A tree whose branches need `length` slots each."""
    tokens = np.zeros(trunk, np.int32)
    return Tree(tokens, tokens, [Branch(np.zeros(1, np.int32), trunk, most=length)] * branches)


def part(seed: int) -> list[Tree]:
    """Part of a data set: trunks of all lengths, two to five responses, texts of lognormal length."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(5.5, 0.4, 512)), 40, 900).astype(int)
    return [tree(int(rng.integers(600, 3000)), int(rng.integers(2, 6)), int(length)) for length in lengths]


def chosen(trees, known=(), slots: int = 16, fits=lambda lane: True) -> list[Lane]:
    found = list(lanes_for(trees, slots, 1, fits, known))
    assert sorted(number for _, numbers in found for number in numbers) == list(range(len(trees)))
    for lane, numbers in found:
        assert all(len(trees[number].tokens) <= lane.trunk for number in numbers)
        assert all(branch.length <= lane.branch for number in numbers for branch in trees[number].branches)
    return [lane for lane, _ in found]


def test_the_parts_of_a_data_set_run_in_the_lanes_of_the_first():
    known: dict[Lane, None] = {}
    for seed in range(8):
        known |= dict.fromkeys(chosen(part(seed), known))
    assert len({lane.trunk for lane in known}) == 3 and len(known) <= 6
    assert len({lane for seed in range(8) for lane in chosen(part(seed))}) > len(known)
    assert set(chosen(part(0)[:5], known)) <= set(known)  # what is left at the end of a pass


def test_a_known_lane_is_not_taken_where_it_would_be_slow_or_does_not_hold_the_trees():
    (known,) = chosen([tree(400, 4, 384)] * 8)
    assert chosen([tree(400, 4, 128)] * 9, [known]) == chosen([tree(400, 3, 384)] * 8, [known]) == [known]
    for trees in ([tree(600, 4, 128)] * 8, [tree(400, 4, 385)] * 8, [tree(400, 4, 40)] * 8, [tree(400, 8, 128)] * 8):
        assert chosen(trees, [known]) == chosen(trees) != [known]
    wider = chosen([tree(400, 8, 384)] * 8)
    assert chosen([tree(400, 4, 384)] * 8, [known, *wider]) == [known]


def test_short_trunks_have_lanes_of_their_own_where_there_are_many_of_them():
    """Every step reads all slots of a trunk. A few trees do not have programs compiled for them."""
    many = lambda *lengths: [tree(length, 4, 64) for length in lengths for _ in range(8)]  # 32 branches fill a lane twice
    assert [lane.trunk for lane in chosen(many(1, 32, 33, 100, 160, 161, 256))] == [32, 64, 128, 160, 192, 256]
    assert [lane.trunk for lane in chosen([tree(130, 4, 64), *many(140, 161)])] == [160, 192]
    assert [lane.trunk for lane in chosen([tree(33, 4, 64), tree(65, 4, 64), *many(100)])] == [128]
    assert [lane.trunk for lane in chosen([tree(30, 4, 64), *many(100)])] == [32, 128]  # more than twice as long
    assert [lane.trunk for lane in chosen([tree(250, 4, 64), *many(300), tree(600, 4, 64)])] == [512, 1024]
    assert all(lane.trunk_chunks == (lane.trunk,) for lane in chosen(many(1, 100, 160)))


def test_a_known_lane_with_somewhat_longer_short_trunks_will_do():
    (known,) = chosen([tree(190, 4, 64)] * 8)
    assert chosen([tree(100, 4, 64)] * 8, [known]) == [known]
    assert chosen([tree(64, 4, 64)] * 8, [known]) != [known] != chosen([tree(200, 4, 64)] * 8, [known])
    (long,) = chosen([tree(1000, 4, 64)] * 8)
    assert chosen([tree(500, 4, 64)] * 8, [long]) != [long]


@pytest.mark.parametrize("room", [1, 2**20, 2**22, 2**40])
def test_a_lane_has_as_many_slots_as_there_is_room_for(room):
    """One at least, so that the device says what is too large for it."""
    tokens = lambda lane: lane.rows * lane.trunk + lane.slots * lane.branch
    fits = lambda lane: 512 * tokens(lane) <= room
    for lane in (*chosen(part(0), fits=fits), serving_lane(4096, 1024, 16, fits)):
        assert lane.slots == 1 or fits(lane)
        assert 1 <= lane.places <= lane.slots <= 16 and lane.rows >= 1
        assert math.log2(lane.slots).is_integer()
    assert {lane.slots for lane in chosen(part(0), fits=fits)} <= ({16} if room > 2**30 else {1, 2, 4, 8})


def test_of_no_trees_there_is_no_lane():
    assert chosen([]) == []
