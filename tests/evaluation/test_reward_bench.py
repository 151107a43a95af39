"""ACC, ACC+, ties, coverage and means of synthetic rewards, counted by hand."""

from __future__ import annotations

import pytest

from mmrlhf_jax.evaluation.reward_bench import accuracy, figures
from mmrlhf_jax.records import RankedRecord, Response


def record(name: str, ranks, rewards, category: str = "a", texts=None) -> RankedRecord:
    texts = texts or [f"{name} {number}" for number in range(len(ranks))]
    responses = [Response(text, rank, reward=reward) for text, rank, reward in zip(texts, ranks, rewards, strict=True)]
    return RankedRecord(name, f"Question {name}?", tuple(responses), extra={"category": category})


RECORDS = [
    record("1", (1, 2, 3), (3, 2, 1)),  # 3 of 3
    record("2", (1, 2, 3), (3, 1, 2)),  # 2 of 3: the last two stand in the wrong order
    record("3", (1, 1, 2), (0, 1, 0)),  # 1 of 2, and one tie
    record("4", (1, 2), (-1, -2), "b"),  # 1 of 1
    record("5", (1, 2), (7, 7), "b"),  # a tie
    record("6", (1, 2), (1, None), "b"),  # not scored
    record("7", (1, 1), (1, 2), "b"),  # no pair
]


def test_pairs_prompts_ties_and_coverage():
    found = accuracy(RECORDS)
    assert (found.pairs, found.scored, found.right, found.ties) == (11, 10, 7, 2)
    assert (found.groups, found.scored_groups, found.right_groups) == (6, 5, 2)
    assert found.acc == 7 / 10 and found.acc_plus == 2 / 5 and found.acc_without_ties == 7 / 8


def test_groups_pooled_and_macro():
    found = figures(RECORDS)
    a, b = found.groups["a"], found.groups["b"]
    assert (a.pairs, a.scored, a.right, a.ties, a.acc, a.acc_plus) == (8, 8, 6, 1, 6 / 8, 1 / 3)
    assert (b.pairs, b.scored, b.right, b.ties, b.acc, b.acc_plus) == (3, 2, 1, 1, 1 / 2, 1 / 2)
    assert found.overall == accuracy(RECORDS)
    assert (found.macro.groups, found.macro.acc) == (2, (6 / 8 + 1 / 2) / 2)
    assert found.macro.acc_plus == pytest.approx((1 / 3 + 1 / 2) / 2)
    for interval, mean in ((found.macro.acc_interval, 5 / 8), (found.macro.acc_plus_interval, 5 / 12)):
        assert interval[0] < mean < interval[1]
    assert found.differences == ("1 of 11 pairs are not scored",)


def test_a_prompt_that_is_not_scored_whole_counts_its_scored_pairs_and_not_in_acc_plus():
    found = accuracy([record("1", (1, 2, 3), (3, 2, None)), record("2", (1, 2), (1, 0))])
    assert (found.pairs, found.scored, found.right) == (4, 2, 2)
    assert (found.groups, found.scored_groups, found.acc_plus) == (2, 1, 1.0)


def test_where_all_is_tied_nothing_is_right_and_nothing_is_left_without_ties():
    found = accuracy([record("1", (1, 2), (2, 2))])
    assert (found.acc, found.acc_plus, found.ties, found.acc_without_ties) == (0.0, 0.0, 1, None)


def test_of_nothing_scored_there_is_no_figure():
    found = figures([record("1", (1, 2), (None, None)), record("2", (1, 2), (1, 0), "b")])
    assert (found.groups["a"].acc, found.groups["a"].acc_plus, found.groups["a"].acc_interval) == (None, None, None)
    assert found.groups["b"].acc == 1.0 and found.overall.acc == 1.0
    assert (
        found.macro.acc is None and found.macro.acc_interval is None and found.macro.acc_plus is None
    )  # a mean without a group would be another one


def test_records_of_one_prompt_are_one_group():
    """Rows that are not all pairs of an order become records of their own, `id` and `id#2`."""
    first, second = record("q", (1, 2), (1, 0)), record("q#2", (1, 2), (0, 1), texts=["x", "y"])
    second = RankedRecord("q#2", first.prompt, second.responses, extra={"category": "a"})
    found = accuracy([first, second])
    assert (found.pairs, found.right, found.groups, found.acc_plus) == (2, 1, 1, 0.0)
    other = RankedRecord("q#2", first.prompt, second.responses, images=("other.png",))
    assert accuracy([first, other]).groups == 2


def test_intervals_are_over_prompts():
    """Four prompts of ten pairs each, right or wrong as a whole: the interval is that of four, not of forty."""
    ranks = tuple(range(1, 6))
    records = [record(str(n), ranks, [rank if n % 2 else -rank for rank in ranks]) for n in range(4)]
    low, high = accuracy(records).acc_interval
    assert (low, high) == (0.0, 1.0)
    alone = [record(f"{n} {k}", (1, 2), (n % 2, 0.5)) for n in range(4) for k in range(10)]
    low, high = accuracy(alone).acc_interval
    assert 0.3 < low < 0.4 and 0.6 < high < 0.7


def test_the_longer_answer_counts_half_where_both_are_as_long():
    """Over the pairs that ACC is over: those that are scored."""
    records = [
        record("1", (1, 2, 3), (0, 0, 0), texts=["aaa", "aa", "aa"]),  # 1, 1, 1/2
        record("2", (1, 2), (5, 7), "b", texts=["a", "aa"]),  # 0
        record("3", (1, 2), (None, None), "c", texts=["aaa", "aa"]),
    ]
    found = figures(records)
    assert found.overall.longer_wins == 2.5 / 4
    assert [found.groups[name].longer_wins for name in "abc"] == [2.5 / 3, 0.0, None]
