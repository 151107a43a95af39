"""Which records people are asked about: some by chance, drawn before any other, and the ones in doubt, spread over sources."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from mmrlhf_jax.growing import queue
from mmrlhf_jax.growing.queue import DISAGREEMENT, NEAR_TIE, RANDOM, REMAINING
from mmrlhf_jax.records import RankedRecord, Response


def record(name: str, *rewards: float, source: str = "s", flags=(), ranks=None) -> RankedRecord:
    order = sorted(rewards, reverse=True)
    responses = tuple(
        Response(
            f"{name} {place}",
            rank=order.index(reward) + 1 if ranks is None else ranks[place],
            reward=reward,
            extra={"flags": ["empty"] if place in flags else []},
        )
        for place, reward in enumerate(rewards)
    )
    return RankedRecord(name, "?", responses, source=source)


def many(count: int, source: str = "s", seed: int = 0) -> list[RankedRecord]:
    margins = np.random.default_rng(seed).uniform(0, 5, count)
    return [record(f"{source}{i}", 0.0, float(margin), source=source) for i, margin in enumerate(margins)]


REVERSED = [[1, 2]]  # another judge prefers the first answer; the critic, in `many`, the second


def test_the_parts_have_their_shares():
    records = many(400)
    found = queue.select(records, 100, 0, {i: REVERSED for i in range(0, 400, 3)}, {})
    assert collections.Counter(found.values()) == {RANDOM: 10, DISAGREEMENT: 45, NEAR_TIE: 45}


def test_near_ties_and_disagreements_are_the_strongest_of_what_chance_has_left():
    records = many(300)
    others = {i: REVERSED for i in range(100)}
    found = queue.select(records, 60, 1, others, {})
    by_chance = {i for i, why in found.items() if why == RANDOM}
    margin = {i: queue.first_margin(records[i]) for i in range(300)}
    disagreed = {i for i, why in found.items() if why == DISAGREEMENT}
    assert disagreed == set(sorted(set(others) - by_chance, key=lambda i: -margin[i])[:27])
    near = {i for i, why in found.items() if why == NEAR_TIE}
    assert near == set(sorted(set(range(300)) - by_chance - disagreed, key=margin.__getitem__)[:27])


def test_chance_does_not_see_what_the_critic_thinks():
    """The random part is the same whatever rewards and other judges say, so that it is a sample of all records."""
    one, other = many(200, seed=1), many(200, seed=2)
    chosen = [
        {i for i, why in queue.select(records, 50, 3, others, {}).items() if why == RANDOM}
        for records, others in ((one, {}), (other, {i: REVERSED for i in range(200)}))
    ]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 5
    drawn = [i for seed in range(200) for i, why in queue.select(one, 50, seed, {}, {}).items() if why == RANDOM]
    assert len(set(drawn)) > 190  # every record can be drawn
    assert {i for i, why in queue.select(one, 50, 4, {}, {}).items() if why == RANDOM} != chosen[0]


def test_every_source_has_its_share_of_every_part():
    records = [*many(300, "a"), *many(100, "b", seed=1)]
    found = queue.select(records, 80, 0, {i: REVERSED for i in range(400)}, {})
    for why in (RANDOM, DISAGREEMENT, NEAR_TIE):
        sources = collections.Counter(records[i].source for i, each in found.items() if each == why)
        assert sources["a"] == pytest.approx(0.75 * sources.total(), abs=1), why


def test_a_larger_budget_keeps_what_is_there():
    records, others = many(300), {i: REVERSED for i in range(50)}
    before = queue.select(records, 40, 0, others, {})
    after = queue.select(records, 100, 0, others, before)
    assert set(before) <= set(after) and len(after) == 100
    assert all(after[i] in (why, RANDOM) for i, why in before.items())
    anew = queue.select(records, 100, 0, others, {})
    by_chance = [{i for i, why in each.items() if why == RANDOM} for each in (after, anew)]
    assert by_chance[0] == by_chance[1]  # as if there had been one budget only


def test_without_other_judges_near_ties_take_their_place_and_all_are_taken_if_there_are_few():
    records = many(30)
    assert collections.Counter(queue.select(records, 20, 0, {}, {}).values()) == {RANDOM: 2, NEAR_TIE: 18}
    assert set(queue.select(records, 500, 0, {}, {})) == set(range(30))


def test_what_leaves_nothing_to_compare_is_not_asked():
    same = RankedRecord("same", "?", (Response("x", rank=1, reward=1.0), Response("x", rank=2, reward=0.0)))
    records = [record("one", 1.0), same, record("flagged", 0.5, 0.2, flags=(1,)), record("two", 0.1, 0.9)]
    found = queue.select(records, 10, 0, {}, {})
    assert found == {2: RANDOM, 3: NEAR_TIE} or found == {2: REMAINING, 3: RANDOM}
    assert queue.first_margin(records[2]) is None and queue.first_margin(records[3]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("ranks", "other", "wanted"),
    [
        ([1, 2, 3], [1, 2, 3], 0.0),
        ([1, 2, 3], [3, 2, 1], 2.0),  # the widest of three reversed pairs
        ([1, 1, 3], [2, 1, 3], 0.0),  # the critic ties what the other orders
        ([1, 2, 3], [1, 1, 1], 0.0),  # the other ties
        ([1, 2, 3], [None, 2, 1], 1.0),  # one is not known there
        ([1, 2, 3], [None, None, None], 0.0),
    ],
)
def test_a_disagreement_is_as_strong_as_the_critics_margin_against_the_other_order(ranks, other, wanted):
    assert queue.disagreement(record("r", 2.0, 1.0, 0.0, ranks=ranks), [other]) == wanted


def test_ranks_elsewhere_are_found_by_the_text():
    here = RankedRecord("r", "?", (Response("a"), Response("b"), Response("c")))
    there = RankedRecord("r", "?", (Response("c", rank=1), Response("a", rank=2)))
    assert queue.ranks_elsewhere(here, there) == [2, None, 1]
