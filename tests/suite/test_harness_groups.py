"""Documents that the harness scores together are in a figure together, or not at all; and what is no score is none for it."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.suite.answers import Answer, Answered
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.judges.judging import FAILED
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.reasons import APART, BEYOND_LIMIT, NOT_ANSWERED
from mmrlhf_jax.suite.results import Coverage
from tests.serving.fakes import chat, refusal
from tests.suite.support import harness, made_up
from tests.suite.support.harness import asked, tasks_of
from tests.suite.support.judged import judge, judging

pytestmark = harness.needed
MME, MMBENCH, CONSISTENCY = TASKS["mme"], TASKS["mmbench_cn_dev"], TASKS["videochatgpt_consistency"]


def reply(text: str):
    return chat("{'score': 4}" if "dictionary" in text else "E", model="m")


def scored(tasks: HarnessTasks, task, folder, texts, says=reply, answered=None, unanswered=None):
    """(results of these answers, how often the judge was asked)."""
    _, requests = asked(tasks, task)
    answers = {one.document: Answer.to(one.request, texts[int(one.document)], "stop") for one in requests if one.request}
    answers = {name: each for name, each in answers.items() if answered is None or name in answered}
    with judge(says) as fake, judging(fake, folder / "verdicts.jsonl") as judged:
        found = tasks.score(task, Answered(answers, unanswered or {}), judged)
        return found, len(fake.asked)


def reasons(found) -> list[str | None]:
    return [each.missing for each in found.documents]


def without(task, folder, *numbers: int) -> Local:
    """Made-up documents, of which some do not exist."""
    path = made_up.write(task.name, folder)
    lines = path.read_text().splitlines(True)
    path.write_text("".join(line for number, line in enumerate(lines) if number not in numbers))
    return Local(str(path))


# Videos with a question that is asked in two ways ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_judge_that_fails_for_a_video_leaves_both_of_its_questions_out(running, tmp_path):
    tasks = tasks_of(running, CONSISTENCY, tmp_path / "data")
    texts = ["a ball", "a cube", "a car", "a car"]
    found, calls = scored(tasks, CONSISTENCY, tmp_path, texts, lambda text: refusal(400) if "a cube" in text else reply(text))
    assert reasons(found) == [APART, FAILED, None, None] and calls == 2
    assert found.figures["videochatgpt_consistency"].value == 4.0
    assert [dict(each.values) for each in found.documents[2:]] == [{"videochatgpt_consistency": 4.0}] * 2


@pytest.mark.slow
def test_a_dead_judge_gives_no_figure(running, tmp_path):
    tasks = tasks_of(running, CONSISTENCY, tmp_path / "data")
    found, _ = scored(tasks, CONSISTENCY, tmp_path, ["a ball"] * 4, lambda text: refusal(400))
    assert found.figures["videochatgpt_consistency"].value is None and found.coverage.scored == 0
    assert found.coverage.missing == {APART: 2, FAILED: 2}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 3])
def test_a_video_of_which_one_question_is_beyond_the_limit_is_in_no_figure(running, tmp_path, limit):
    tasks = tasks_of(running, CONSISTENCY, tmp_path / "data", limit=limit)
    found, calls = scored(tasks, CONSISTENCY, tmp_path, ["a ball"] * 4)
    assert found.coverage == Coverage(4, limit, limit - 1, {APART: 1, BEYOND_LIMIT: 4 - limit})
    assert found.figures["videochatgpt_consistency"].value == (None if limit == 1 else 4.0) and calls == limit // 2


# Questions with their options in several orders ------------------------------------------------------------------------

RIGHT = ["A", "C", "A", "B", "C", "B"]  # of the made-up documents; those of a question are (0, 1), (2, 3), (4, 5)


@pytest.mark.slow
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_a_question_with_one_order_that_cannot_be_judged_is_missing_as_a_whole(running, tmp_path, place):
    """Be the order that of the question itself or another one, and stand it before or behind that."""
    tasks = tasks_of(running, MMBENCH, tmp_path / "data")
    texts = [*RIGHT[:place], "I do not know", *RIGHT[place + 1 :]]
    found, _ = scored(tasks, MMBENCH, tmp_path, texts, lambda text: refusal(400))
    group = {place, place ^ 1}
    assert {number for number, why in enumerate(reasons(found)) if why} == group
    assert reasons(found)[max(group)] == FAILED and reasons(found)[min(group)] == APART
    assert found.figures["mmbench"].value == 100.0 and found.coverage.scored == 4


@pytest.mark.slow
def test_a_question_is_a_hit_if_all_orders_are_and_counts_once(running, tmp_path):
    tasks = tasks_of(running, MMBENCH, tmp_path / "data")
    texts = ["A", "C", "A", "B", "C", "C"]  # the last question is wrong in its second order
    found, calls = scored(tasks, MMBENCH, tmp_path, texts)
    assert found.figures["mmbench"].value == pytest.approx(200 / 3) and calls == 0
    values = [each.values.get("mmbench") for each in found.documents]
    assert values == [100.0, None, None, 100.0, 0.0, None]
    assert len(found.figures["mmbench"].draws) == 1000 and found.coverage.scored == 6


@pytest.mark.slow
def test_the_judge_is_asked_once_about_a_question_and_not_where_it_cannot_change_anything(running, tmp_path):
    tasks = tasks_of(running, MMBENCH, tmp_path / "data")
    texts = ["I do not know", "B", "hm", "hm", "well", "B"]  # the first question is wrong in its other order
    found, calls = scored(tasks, MMBENCH, tmp_path, texts, lambda text: chat("B" if "hm" in text else "C", model="m"))
    values = [each.values["mmbench"] for each in found.documents if each.values]
    assert (values, calls) == ([0.0, 0.0, 100.0], 3) and found.coverage.missing == {}


@pytest.mark.slow
def test_a_question_without_an_answer_to_one_of_its_orders(running, tmp_path):
    tasks = tasks_of(running, MMBENCH, tmp_path / "data")
    found, calls = scored(tasks, MMBENCH, tmp_path, [*RIGHT[:2], "hm", *RIGHT[3:]], answered=["1", "2", "4", "5"])
    assert reasons(found) == [NOT_ANSWERED, APART, APART, NOT_ANSWERED, None, None]
    assert found.figures["mmbench"].value == 100.0 and calls == 0


@pytest.mark.slow
def test_a_question_whose_own_order_is_not_in_the_data(running, tmp_path):
    tasks = HarnessTasks(running, Options(), {MMBENCH.name: without(MMBENCH, tmp_path, 0, 1, 3)})
    found, calls = scored(tasks, MMBENCH, tmp_path, ["hm", "C", "B"])
    assert reasons(found) == [APART, None, None] and calls == 0
    assert found.figures["mmbench"].value == 100.0


# Pairs of questions about a picture ------------------------------------------------------------------------------------


def of_one_category(folder, *lost: int) -> dict[str, Local]:
    """MME with three pairs of one category, of which some documents do not exist."""
    path = made_up.write("mme", folder)
    rows = [json.loads(line) | {"category": "existence"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for number, row in enumerate(rows) if number not in lost))
    return {"mme": Local(str(path))}


def test_a_question_whose_partner_is_missing_is_missing_and_the_others_have_a_figure(running, tmp_path):
    tasks = HarnessTasks(running, Options(), of_one_category(tmp_path))
    found, _ = scored(tasks, MME, tmp_path, ["Yes", "No"] * 3, answered=["0", "2", "3"], unanswered={"4": "no picture"})
    assert reasons(found) == [APART, NOT_ANSWERED, None, None, "no picture", NOT_ANSWERED]
    assert found.figures["mme"].value == 200.0
    assert [dict(each.values) for each in found.documents[2:4]] == [{"mme": 200.0}] * 2


@pytest.mark.parametrize(("limit", "value"), [(1, None), (3, 200.0), (5, 200.0)])
def test_an_odd_limit_tears_a_pair(running, tmp_path, limit, value):
    tasks = HarnessTasks(running, Options(limit=limit), of_one_category(tmp_path))
    found, _ = scored(tasks, MME, tmp_path, ["Yes", "No"] * 3)
    assert found.figures["mme"].value == value
    assert found.coverage == Coverage(6, limit, limit - 1, {APART: 1, BEYOND_LIMIT: 6 - limit})


def test_a_pair_of_which_the_data_have_one(running, tmp_path):
    tasks = HarnessTasks(running, Options(), of_one_category(tmp_path, 2))
    found, _ = scored(tasks, MME, tmp_path, ["Yes", "No", "No", "Yes", "No"])
    assert reasons(found) == [None, None, APART, None, None] and found.figures["mme"].value == 200.0


# Figures over categories -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"limit": 4}])
def test_a_sum_over_categories_has_no_figure_without_one_of_them(running, tmp_path, options):
    tasks = tasks_of(running, MME, tmp_path / "data", **options)
    found, _ = scored(tasks, MME, tmp_path, ["Yes", "No"] * 3, answered=["0", "1", "2", "3"])
    assert found.figures["mme"].missing == "2 of 3 categories: code_reasoning missing"
    assert found.coverage.scored == 4 and [dict(each.values) for each in found.documents[:4]] == [{"mme": 200.0}] * 4
    known = [each.group for each in found.documents]  # also of documents that are not scored
    assert known == ["existence", "existence", "color", "color", "code_reasoning", "code_reasoning"][: options.get("limit")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lost", "reason"),
    [
        ("mmstar", 2, "1 of 2 categories: common reasoning missing"),
        ("mmstar", 1, None),
        ("llava_interleave_bench_in_domain", 1, "2 of 3 categories: spot_the_diff missing"),
    ],
)
def test_a_mean_over_categories_has_no_figure_without_one_of_them(running, tmp_path, name, lost, reason):
    task = TASKS[name]
    tasks = tasks_of(running, task, tmp_path / "data")
    there = [str(number) for number in range(3) if number != lost]
    found, _ = scored(tasks, task, tmp_path, ["A", "B", "C"], answered=there, unanswered={str(lost): "its picture is missing"})
    (figure,) = found.figures.values()
    assert figure.missing == reason and (figure.value is None) == (reason is not None)
    assert None not in [each.group for each in found.documents]


# Metrics that are no mean of what was scored ---------------------------------------------------------------------------


@pytest.mark.slow
def test_ocrbench_is_of_the_documents_that_were_scored(running, tmp_path):
    task = TASKS["ocrbench"]
    tasks = tasks_of(running, task, tmp_path / "data")
    found, _ = scored(tasks, task, tmp_path, ["red", "blue", "blue"])
    assert found.figures["ocrbench"].value == pytest.approx(200 / 3)
    assert [dict(each.values) for each in found.documents] == [{"ocrbench": 100.0}, {"ocrbench": 0.0}, {"ocrbench": 100.0}]
    assert {round(each, 6) for each in found.figures["ocrbench"].draws} == {0.0, 33.333333, 66.666667, 100.0}
    found, _ = scored(tasks, task, tmp_path, ["red", "blue", "blue"], answered=["0", "2"])
    assert found.figures["ocrbench"].value == 100.0 and found.coverage.scored == 2


@pytest.mark.slow
@pytest.mark.parametrize(("label", "elo"), [("[[A>>B]]", 0.0), ("[[B>A]]", 100.0), ("[[A=B]]", 50.0)])
def test_a_model_that_wins_or_loses_every_battle_has_no_rating(running, tmp_path, label, elo):
    task = TASKS["wildvision_0617"]
    found, _ = scored(
        tasks_of(running, task, tmp_path / "data"), task, tmp_path, ["x"] * 3, lambda text: chat(label, model="m")
    )
    assert found.figures["wildvision_elo"].value == elo
    assert set(found.figures["wildvision_elo"].draws) == {elo}
    assert found.figures["wildvision_win"].value == (100.0 if elo == 100 else 0.0)
