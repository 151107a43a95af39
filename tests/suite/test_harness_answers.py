"""Answers that the harness's metrics read otherwise than they are meant, or cannot read, have the score that they deserve."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.suite.answers import Answer, Answered
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.groups import TOGETHER
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.local import Local
from tests.suite.support import harness, made_up
from tests.suite.support.harness import SCORED, asked, tasks_of, verdict
from tests.suite.support.judged import judge, judging

pytestmark = [harness.needed, pytest.mark.slow]

ODD = (
    "", ".", "...", "   ", "\n", "🙂", "1e999", "-1e999", "nan", "Infinity", "%", "1,000", "9" * 5000, "１２", "1/0", "\u200b",
    "[1, 2", "{'a':", "\\", "(", "*", "'", "None", "不知道", "。", "A" * 20_000, "word " * 3000, "<think>hm</think>", "no\x00",
)  # fmt: skip


def answered(tasks: HarnessTasks, task, texts) -> dict[str, Answer]:
    return {one.document: Answer.to(one.request, texts[int(one.document)], "stop") for one in asked(tasks, task)[1]}


@pytest.mark.parametrize("task", SCORED, ids=lambda task: task.name)
def test_no_answer_however_odd_leaves_a_figure(running, tmp_path, task):
    path = made_up.write(task.name, tmp_path / "data")
    lines = path.read_text().splitlines(True)
    texts = [odd for odd in ODD for _ in lines]
    if task.name in TOGETHER:  # these documents cannot be repeated
        texts = [ODD[number % len(ODD)] for number in range(len(lines))]
    else:
        path.write_text("".join(lines * len(ODD)))
    tasks = HarnessTasks(running, Options(video_frames=2), {task.name: Local(str(path))})
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, Answered(answered(tasks, task, texts)), judged)
    assert found.coverage.missing == {} and found.coverage.scored == len(texts)
    assert all(figure.value is not None for figure in found.figures.values())


def test_an_answer_of_dots_to_an_open_question_is_worth_as_much_as_none(running, tmp_path):
    task = TASKS["llava_interleave_bench_in_domain"]
    tasks = tasks_of(running, task, tmp_path / "data")
    values = []
    for text in ("the line is longer", "...", ""):
        with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
            found = tasks.score(task, Answered(answered(tasks, task, ["A", text, "B"])), judged)
        values.append([dict(each.values)["interleave"] for each in found.documents])
    assert values == [[100.0, pytest.approx(100.0), 100.0], [100.0, 0.0, 100.0], [100.0, 0.0, 100.0]]


@pytest.mark.parametrize(("mode", "pope", "mmmu"), [("corrected", 75.0, 200 / 3), ("paper", 25.0, 0.0)])
def test_punctuation_is_no_part_of_an_answer(running, tmp_path, mode, pope, mmmu):
    for name, texts, value in (
        ("pope_adv", ["Yes.", "no", "yes, there is", "There is a thing."], pope),  # yes, no, yes, no
        ("mmmu_pro_vision", ["A.", "(B)", "I think so"], mmmu),  # A, B, C
    ):
        task = TASKS[name]
        tasks = tasks_of(running, task, tmp_path / name, mode=mode)
        with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
            found = tasks.score(task, Answered(answered(tasks, task, texts)), judged)
        assert found.figures[task.rows[0].name].value == pytest.approx(value, abs=1e-3) and found.settings["mode"] == mode
        assert [each.answer for each in found.documents] == texts


def test_a_task_that_fails_for_another_reason_is_missing(running, tmp_path):
    """What is scored as an empty answer is narrow: an unknown kind of question is not the answer's fault."""
    task = TASKS["llava_interleave_bench_in_domain"]
    path = made_up.write(task.name, tmp_path / "data")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["question_type"] = "essay"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = HarnessTasks(running, Options(), {task.name: Local(str(path))})
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, Answered(answered(tasks, task, ["A", "...", "B"])), judged)
    assert "Unknown question type" in found.documents[1].missing and found.coverage.scored == 2
