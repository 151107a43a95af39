"""What answers say to tasks whose metric in the harness compares their whole text, by hand."""

from __future__ import annotations

import pytest

from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.corrected import READINGS, corrected, existence, letter
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options

TEN = {"options": str([f"option {number}" for number in range(10)])}
TWO = {"options": ["one", "two"]}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A", "A"), ("A.", "A"), ("(A)", "A"), ("a", "A"), ("**B**", "B"), (" C \n", "C"), ("B. cat", "B"), ("(C) dog", "C"),
        ("A: yes", "A"), ("A) x", "A"), ("[B]", "B"), ("B because", "B"), ("C, since it is red", "C"), ("B\n\nIt is.", "B"),
        ("The answer is (D).", "D"), ("The answer is A because it fits.", "A"), ("Answer: C", "C"), ("\\boxed{B}", "B"),
        ("The final answer is: **E**", "E"), ("So it must be (B).", "B"), ("the correct option is J", "J"),
        ("First (A) looks right, but the answer is (B).", "B"), ("I", "I"), ("The answer is I.", "I"), ("答案是 (B)", "B"),
        ("", None), (".", None), ("I don't know", None), ("A cat", None), ("Answer: A cat sits", None), ("(A) or (B)", None),
        ("B or C", None), ("A and B", None),
        ("It is between (A) and (B)", None), ("Answer: I don't know", None), ("不知道", None), ("AB", None), ("cat", None),
        ("The answer is a cat", None), ("I, for one, do not know", None),
    ],
)  # fmt: skip
def test_a_letter(answer, found):
    assert letter(answer, TEN) == found


def test_a_letter_that_is_no_option_is_no_answer():
    assert letter("The answer is (C).", TWO) is None and letter("C. cat", TWO) is None
    assert letter("The answer is (B), not (C).", TWO) == "B"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Yes", "yes"), ("yes.", "yes"), ("Yes, there is.", "yes"), ("YES!", "yes"), ("**Yes**", "yes"),
        ("The answer is yes", "yes"), ("Yes there is, not a cat", "yes"), ("yes, there is", "yes"), (" no\n", "no"),
        ("No.", "no"), ("No, there is no dog.", "no"), ("There is no dog.", "no"), ("There isn't a dog", "no"),
        ("Not at all", "no"), ("It does not show a dog. Yes.", "no"), ("", None), (".", None), ("There is a dog.", None),
        ("I don't know", None), ("eyes", None), ("Nothing", None), ("是", None), ("(A)", None),
    ],
)  # fmt: skip
def test_yes_or_no(answer, found):
    assert existence(answer, {}) == found


def test_what_does_not_say_what_was_asked_stays_as_it_is():
    assert corrected("pope_adv", "I don't know", {}) == "I don't know" and corrected("pope_adv", "Yes.", {}) == "yes"
    assert corrected("mme", "Yes.", {}) == "Yes."


def test_the_mode_is_a_setting_of_these_tasks_alone():
    for mode in ("corrected", "paper"):
        tasks = HarnessTasks(None, Options(), {}, mode)
        for task in (each for each in TASKS.values() if not each.own_metrics):
            assert tasks.settings(task).get("mode") == (mode if task.name in READINGS else None)
            assert tasks.made_with(task) == HarnessTasks(None, Options(), {}).made_with(task)  # asked is the same
    assert READINGS.keys() == {"pope_adv", "pope_pop", "pope_random", "mmmu_pro_vision"}
