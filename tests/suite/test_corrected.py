"""What answers say to tasks whose metric in the harness compares their whole text, by hand."""

from __future__ import annotations

import pytest

from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.corrected import READINGS, corrected, letter
from mmrlhf_jax.suite.harness.existence import existence
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


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("The answer is B. Option C is wrong.", "B"), ("The correct answer is B, because option D shows a dog", "B"),
        ("The answer is A. The other options, option B, are wrong", "A"),
        ("Answer: (B)\n\nOption A: wrong\nOption C: wrong", "B"),
        ("Option C is wrong. The answer is B.", "B"), ("The correct option is B; option D shows a dog", "B"),
        ("A: no dog. B: a dog. The answer is B.", "B"), ("The answer is A. No, wait: the answer is B.", "B"),
        ("The answer is option B, not option C", "B"), ("The answer is: $\\boxed{B}$. (C) is wrong.", "B"),
        ("The answer should be B", "B"), ("**Answer:** B", "B"), ("**Answer**: Option B", "B"), ("Answer B", "B"),
        ("The answer is B, since it is red and A is not", "B"), ("The answer is B and I am sure", "B"), ("A, I think", "A"),
        ("Option A is wrong, so it is option B", "B"), ("It must be option B", "B"), ("(B) False", "B"), ("B. Not seen", "B"),
        ("It is (B), not (C).", "B"), ("B is right", "B"),
        ("A, B and C are wrong; D is right", None), ("A, B are wrong", None), ("The answer is A or B", None),
        ("The answer is (A) or (B)", None), ("The answer is A, B or C", None), ("Answer: A/B", None), ("Answer: B, C", None),
        ("The answer is option B or option C", None), ("option B or C", None), ("either (B) or C", None),
        ("Option A is wrong.", None), ("Option (A) is wrong.", None), ("B is wrong", None), ("The answer is not (B).", None),
        ("The wrong answer is C", None), ("Options A and B are wrong", None), ("Option A shows a cat, option B a dog", None),
        ("Answer A isn't right", None), ("I know what the answer is. A dog", None),
    ],
)  # fmt: skip
def test_a_letter_among_others(answer, found):
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
        ("Answer: Yes, it is not hidden", "yes"), ("It is not hidden. The answer is yes.", "yes"), ("**Answer:** No", "no"),
        ("Answer: yes or no? It is not there. Answer: No", "no"), ("There is no doubt that the answer is yes", "yes"),
        ("I do not see it, so my answer is: no, it is hidden", "no"), ("I have no idea", None), ("Yes or no?", None),
        ("I don't know", None), ("eyes", None), ("Nothing", None), ("是", None), ("(A)", None),
    ],
)  # fmt: skip
def test_yes_or_no(answer, found):
    assert existence(answer, {}) == found


@pytest.mark.parametrize(
    "answer",
    [
        "I do not know", "I don’t know.", "I'm not sure.", "I am not entirely sure whether there is a dog", "Not sure",
        "not sure.",
        "It is not clear whether there is a dog.", "It's not quite clear if there is no dog", "It does not seem clear to me",
        "I cannot tell", "I can't tell if there is a dog", "I could not say", "I am not able to tell", "I'm not certain.",
        "It's not possible to say no", "It is not possible to say yes", "It isn't possible for me to determine this.",
        "There is not enough information", "There is no way to tell", "There is no way of knowing.", "I have no clue, sorry",
        "I do not have enough information to answer", "I cannot be sure", "This cannot be determined", "It is hard to say no",
        "It is unclear whether there is no dog", "Unsure", "Answer: I do not know", "I do not know whether the answer is no",
        "I can not confirm that there is a dog", "I don't think I can tell", "I cannot see the image",
        "I do not see any picture",
        "I can't see clearly", "I do not see whether there is one",
        "There is a dog, not a cat", "There is a dog but not a cat", "There is a dog, but no cat",
        "There is a dog and no cat", "There are two dogs, and no cat",
        "Not only a dog but also a cat", "There is not only a dog", "It is not hidden.", "It isn't the only dog",
        "A dog, not a cat",
        "I would not say no", "The dog is not alone", "There is no doubt about it",
    ],
)  # fmt: skip
def test_an_answer_that_says_neither_yes_nor_no(answer):
    assert existence(answer, {}) is None


@pytest.mark.parametrize(
    "answer",
    [
        "There is no dog", "There is not a dog.", "There are not any dogs", "There’s not a dog here", "There isn’t any.",
        "There is definitely not a dog in it", "It is not there", "It is not.", "It isn't.",
        "A dog is not present in the image",
        "The dog is not visible", "A dog isn't visible.", "The image does not contain a dog", "The image doesn't show a dog",
        "I do not see a dog", "I don't see any dog", "I cannot see a dog", "I can't find one.", "I am not able to see a dog",
        "A dog cannot be seen", "There does not appear to be a dog", "I don't think so", "I do not believe there is a dog",
        "Not at all", "Not that I can see", "Definitely not.", "not a dog", "The picture has not a dog", "Dogs are not shown",
        "The answer is not yes", "I would not say yes", "I'm not sure what it is, but there is no dog",
        "I do not know what it is, no dog is in it", "A street with no dog", "There is a man with no dog",
        "That is not a dog, but a cat",
        "There is no question, there is no dog", "It's a cat and there is no dog", "No, I do not know where it would be",
    ],
)  # fmt: skip
def test_an_answer_that_denies(answer):
    assert existence(answer, {}) == "no"


@pytest.mark.parametrize(
    "answer",
    [
        "Yes, but not a dog", "Yes, although I do not know which", "I'm not sure, but yes", "There is no doubt, yes",
        "It is not clear. The answer is yes.", "I do not know much about dogs, but the answer is yes", "It is a yes",
        "The answer: yes, I am not wrong", "Yes. I do not see a cat.",
    ],
)  # fmt: skip
def test_an_answer_that_affirms(answer):
    assert existence(answer, {}) == "yes"


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
