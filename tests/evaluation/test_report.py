"""Figures as JSON and as text."""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.evaluation.report import as_json, as_lines
from mmrlhf_jax.evaluation.reward_bench import figures
from tests.evaluation.test_reward_bench import RECORDS, record


def test_the_json_has_groups_overall_means_and_how_they_were_made():
    computed = figures(RECORDS)
    found = as_json(computed, {"data": "rows.jsonl"})
    assert list(found) == ["a", "b", "overall", "macro", "acc_longer_wins", "run"]
    assert found["a"] == dataclasses.asdict(computed.groups["a"]) | {"part": False}
    assert (found["overall"]["right"], found["overall"]["ties"], found["overall"]["pairs"]) == (7, 2, 11)
    assert found["macro"]["acc"] == (6 / 8 + 1 / 2) / 2 and found["acc_longer_wins"] == computed.overall.longer_wins
    assert found["run"] == {"data": "rows.jsonl", "differences": ["1 of 11 pairs are not scored"]}


def test_groups_with_the_names_of_other_keys_do_not_replace_these():
    found = as_json(figures([record("1", (1, 2), (1, 0), "overall"), record("2", (1, 2), (0, 1), "run")]), {})
    assert (found["overall*"]["pairs"], found["overall"]["pairs"], found["run*"]["acc"]) == (1, 2, 0.0)
    assert found["run"] == {"differences": []}


def test_the_table_is_counted_by_hand():
    lines = [line.split() for line in as_lines(figures(RECORDS))]
    assert lines[0] == ["category", "pairs", "prompts", "scored", "ties", "ACC", "95", "%", "ACC+", "95", "%", "longer"]
    assert lines[1][:6] == ["a", "8", "3", "8", "1", "0.750"] and lines[2][:6] == ["b", "3", "3", "2", "1", "0.500"]
    assert lines[3][:6] == ["overall", "11", "6", "10", "2", "0.700"]
    assert lines[4][:5] == ["mean", "of", "2", "groups", "0.625"] and lines[4][-2] == "0.417"
    assert [" ".join(line) for line in lines[5:]] == [
        "ACC of the pairs that are not tied: 0.875",
        "before these figures are compared with others:",
        "1 of 11 pairs are not scored",
    ]


def test_what_is_not_there_is_a_dash():
    lines = [line.split() for line in as_lines(figures([record("1", (1, 2), (None, None))]))]
    assert lines[1][:8] == ["a", "1", "1", "0", "0", "-", "-", "-"]
    assert lines[3][:7] == ["mean", "of", "1", "group", "-", "-", "-"]
