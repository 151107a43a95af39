"""Our own metrics, against values computed by hand: answers as models give them, and replies as judges give them."""

from __future__ import annotations

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import catalogue
from mmrlhf_jax.suite.judges.judging import NotJudged
from mmrlhf_jax.suite.own.chair import objects_in
from mmrlhf_jax.suite.own.mmhal import PAPER_SYSTEM
from mmrlhf_jax.suite.own.registry import grader_of
from mmrlhf_jax.suite.own.replies import contains_yes, rating, two_scores, yes_or_no
from tests.suite.support import made_up_own
from tests.suite.support.judged import text_of


def test_the_catalogue_names_the_metrics_that_graders_give():
    own = {name: task for name, task in catalogue.TASKS.items() if task.own_metrics}
    assert len(own) == 11
    for name, task in own.items():
        grader = grader_of(name)
        assert {metric for row in task.rows for metric in row.metrics} == set(grader.metrics), name
        assert grader.reference is None or grader.reference in task.columns, name
        for columns in made_up_own.documents(name):
            grader.check(columns, name)
            assert set(columns) == set(task.columns), name
            needs_judge = bool(grader.questions("1", columns, "A long answer."))
            assert needs_judge == (task.judge != "none"), name


def test_a_task_of_the_harness_has_no_grader():
    with pytest.raises(KeyError):
        grader_of("mmstar")


# Replies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Yes.", True), ("no", False), ("**Yes**, it is", True), ("No. Yes would be wrong", False), (" YES\n", True),
        ("The answer is 'No'.", False), ("It says yes", True), ("", None), ("banana", None), ("maybe yes, maybe no", None),
        ("eyes", None), ("Know", None), ("(A)", None), ("是", None),
        ("I don't know; there's no way to say", None), ("There is no doubt that it is stated.", None), ("No doubt.", None),
        ("No idea", None), ("No longer visible", None), ("Yes or no? I cannot tell.", None), ("yes/no", None),
        ("Please answer 'Yes.' or 'No.'", None), ("I cannot say yes.", None), ("It says no such thing", None),
        ("It is described. Answer: No", False), ("Noise is mentioned, so the answer is **Yes**.", True), ("_No_", False),
        ("The answer is no doubt", None), ("I would have to go with **no** here", False), ("**Yes** or **no**", None),
        ("The picture has no noise. Yes.", True), ("There is noise.\nNo", False), ("It is there. Therefore, yes!", True),
        ("There is no cat", None),
        ("Yes and no.", None), ("No & yes", None), ("The answer is yes. The answer is no.", None),
        ("Verdict: 'no'", False), ("1. Yes", True),
    ],
)  # fmt: skip
def test_yes_or_no(reply, found):
    assert yes_or_no(reply) is found


def test_the_papers_code_finds_yes_in_other_words():
    assert contains_yes("I see eyes") is True and contains_yes("I know") is False and contains_yes("banana") is None


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("Fine.\nRating: 5, very informative, no hallucination", 5), ("rating: 0", 0), ("**Rating:** 3", 3),
        ("Rating: **6**", 6), ("Rating: 4. So the rating: 4", 4), ("", None), ("Good answer", None), ("Rating: 7", None),
        ("Rating: 10", None),
        ("Rating: 2.5", 2), ("Rating: 6, good\nRating: 2, bad", None), ("5", None), ("Rating: five", None),
    ],
)  # fmt: skip
def test_rating(reply, found):
    assert rating(reply) == found


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("10 8\nBecause", (10, 8)), ("10, 7.5", (10, 7.5)), ("10 0", (10, 0)), ("", None), ("10", None), ("0 5", None),
        ("Assistant 1: 10 Assistant 2: 8", None), ("Sure!\n10 8", None), ("10 11", None), ("-1 -1", None), ("10 8 9", None),
        ("Assistant 1: 10\nAssistant 2: 8", None), ("Assistant 1: 9", None), ("8/10", None), ("10-8", None), ("8 of 10", None),
        ("**9** **8**", (9, 8)), ("9; 8.", (9, 8)), ("9, 8 \nwhy", (9, 8)), ("8.5 7.25", (8.5, 7.25)), ("1e1 8", None),
    ],
)  # fmt: skip
def test_two_scores(reply, found):
    assert two_scores(reply) == found


# MMHal -----------------------------------------------------------------------------------------------------------------

HAL = {"question": "Wie viele?", "gt_answer": "Zwei.", "image_content": ["Cat", "Hund"], "answer": "", "image": b""}


def test_mmhal():
    grader = grader_of("mmhal_bench")
    (question,) = grader.questions("1", HAL, "Drei {}")
    text = text_of(question.body("m"))
    assert text.endswith(
        "### Image Contents\nCat, Hund\n\n### Question\nWie viele?\n\n### Standard Human-Generated Answer\nZwei.\n\n### LMM"
        " Response to Evaluate\nDrei {}\n"
    )
    assert question.body("m")["temperature"] == 0 and len(question.messages) == 1
    values = [grader.grade(HAL, "", (f"Rating: {n}",)).values for n in range(7)]
    assert [each["mmhal_bench_average_score"] for each in values] == list(range(7))
    assert [each["hallucination_rate"] for each in values] == [1, 1, 1, 0, 0, 0, 0]
    with pytest.raises(NotJudged):  # the published code counts this as 0, a hallucination
        grader.grade(HAL, "", ("It is good.",))


def test_mmhal_as_in_the_paper():
    (question,) = grader_of("mmhal_bench", "paper").questions("1", HAL, "Drei")
    body = question.body("gpt-4o-mini")
    assert body["temperature"] == 0.2 and body["messages"][0] == {"role": "system", "content": PAPER_SYSTEM}
    (ours,) = grader_of("mmhal_bench").questions("1", HAL, "Drei")
    assert text_of(body).split() == text_of(ours.body("m")).split() and "\n\n" not in text_of(body)


# LLaVA-Wilder ----------------------------------------------------------------------------------------------------------


def test_wilder_shows_its_judge_the_picture():
    (columns, *_) = made_up_own.documents("llava_wilder_small")
    grader = grader_of("llava_wilder_small")
    (question,) = grader.questions("1", columns, "Eine Antwort")
    text, picture = question.messages[0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert text["text"].startswith(f"[Question]\n{columns['Question']}\n\n[Assistant 1]\n{columns['Answer']}\n\n[End of")
    assert "[Assistant 2]\nEine Antwort\n\n[End of Assistant 2]\n\n[System]\nWe would like to request" in text["text"]
    found = grader.grade(columns, "", ("10 8",))
    assert found.values == {"gpt_eval_llava_all": 80} and found.weights == {"gpt_eval_llava_all": 10}
    with pytest.raises(NotJudged):
        grader.grade(columns, "", ("Both are good",))


# CHAIR -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("", []),
        ("Yes.", []),
        ("A dog, two dogs and puppies.", ["dog", "dog", "dog"]),
        ("Women, men, policemen, children and a person's kids", ["person"] * 6),
        ("a fire hydrant; a street light. A stop sign!", ["fire hydrant", "traffic light", "stop sign"]),
        ("on the street, light falls", []),
        ("a baby elephant, an adult bear, a passenger train", ["elephant", "bear", "train"]),
        ("the seat of the toilet, a toilet seat", ["toilet", "toilet"]),
        ("a seat in the hall", ["chair"]),
        ("a bow tie and a teddy bear by the train track", ["tie", "teddy bear"]),
        ("hot dogs, wine glasses, knives, mice, geese, calves", ["hot dog", "wine glass", "knife", "mouse", "bird", "cow"]),
        ("skis, scissors, buses, benches, ponies, vases", ["skis", "scissors", "bus", "bench", "horse", "vase"]),
        ("a hot-dog, a t-shirt", []),
        ("dog/cat **Bird**: _cow_ end.Horse", ["dog", "cat", "bird", "cow", "horse"]),
        ("café über 日本 cat — “zebra”", ["cat", "zebra"]),
        ("an iPhone", ["cell phone"]),
        ("glasses, skies, his bus", ["bus"]),
    ],
)
def test_objects_that_a_text_names(text, objects):
    assert objects_in(text) == objects


def chair(answer: str, *objects: str):
    columns = {"question": "Describe.", "objects": list(objects), "answer": "", "image": b""}
    found = grader_of("object_hallucination").grade(columns, answer, ())
    return found.values["CHAIR_i_score"], found.weights.get("CHAIR_i_score", 1), found.values["CHAIR_s_score"]


def test_chair():
    assert chair("A dog, a cat and a puppy on a sofa", "dog", "couch") == (1 / 4, 4, 1)
    assert chair("A puppy", "dog") == (0, 1, 0)
    assert chair("Two cats", "dog") == (1, 1, 1)
    assert chair("", "dog") == (None, 1, 0)
    assert chair("A bike", " Bicycle") == (0, 1, 0) and chair("A bike", "motorbike", "bike") == (0, 1, 0)


def test_chairs_objects_must_be_a_list():
    with pytest.raises(UserError, match="column 'objects' must hold a list of texts, found 'dog, cat'"):
        grader_of("object_hallucination").check({"question": "a", "objects": "dog, cat"}, "f")
