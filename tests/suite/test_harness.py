"""Every task of the harness on made-up documents: load, prompt, answer, parse, score; and its metrics are the harness's own."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys

import pytest

from mmrlhf_jax.inference.jobs import ALONE
from mmrlhf_jax.suite import resampling
from mmrlhf_jax.suite.answers import Answer, Answered
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness import NAME
from mmrlhf_jax.suite.harness.running import NOWHERE, PYTHON, Harness, HarnessScoring
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.reasons import APART, OTHER_REQUEST
from mmrlhf_jax.suite.results import Results
from mmrlhf_jax.suite.task import Task, TaskFailed
from tests.suite.support import harness, made_up
from tests.suite.support.harness import SCORED, answers_of, asked, tasks_of, verdict
from tests.suite.support.judged import judge, judging

QUICK = {"mme", "ai2d"}  # the others are slow: a process of the harness takes seconds, and several tasks wait for its judge
each = pytest.mark.parametrize(
    "task",
    [pytest.param(task, id=task.name, marks=() if task.name in QUICK else pytest.mark.slow) for task in SCORED],
)
pytestmark = harness.needed


@pytest.fixture
def twice(monkeypatch):
    """Figures are asked for twice, and are the same."""
    once = HarnessScoring.figures

    def figures(scoring, missing):
        first = once(scoring, missing)
        assert once(scoring, missing) == first
        return first

    monkeypatch.setattr(HarnessScoring, "figures", figures)


def check_pooled(task: Task, found: Results) -> None:
    """The documents' values give the figures, and so the figures have draws."""
    for row in task.rows:
        figure, pooled = found.figures[row.name], resampling.estimate(row, found.documents)
        assert (figure.value is None) == (pooled is None), row.name
        if pooled is not None:
            assert resampling.agrees(row, pooled, figure.value), (row.name, figure.value, pooled.value)
            assert (figure.draws is None) == (pooled.draws is None)


@each
def test_metrics_are_those_of_the_harness_on_the_same_answers(running, tmp_path, twice, task):
    form = "parquet" if len(task.name) % 2 else "jsonl"
    tasks = tasks_of(running, task, tmp_path / "data", form, "paper")
    documents, requests = asked(tasks, task)
    assert documents == len(made_up.documents(task.harness_task)) == len(requests)
    assert all(one.missing is None and one.request.texts[-1] and one.request.media for one in requests)
    answers = answers_of(task, requests)
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, Answered(answers), judged)
        own = alone(task, answers, tmp_path, tmp_path / "data", fake.url)
    assert found.harness == NAME and found.coverage.missing == {}, found.coverage
    check_pooled(task, found)
    for row in task.rows:
        keys = [key if "," in key else f"{key},none" for key in row.metrics]
        values = [own[key] for key in keys if key in own]
        assert values, own
        expected = row.scaled(sum(value or 0.0 for value in values))  # mathvista gives 0 as None
        if task.name == "ocrbench":  # of 1000 documents, there
            expected *= 1000 / documents
        figure = found.figures[row.name]
        assert figure.value is not None and math.isclose(figure.value, expected, abs_tol=1e-9), (row.name, figure, own)
        if len({one.cluster for one in found.documents if one.values.get(row.name) is not None}) > 1:
            assert len(figure.draws) == 1000


def alone(task: Task, answers, folder, home, url: str) -> dict[str, float | None]:
    """The metrics of the harness's `simple_evaluate`, with its judge at an address. `home` has the videos."""
    folder = folder / "alone"
    folder.mkdir()
    (folder / "answers.json").write_text(json.dumps({name: answer.answer for name, answer in answers.items()}))
    full = not task.name.startswith(("llava", "mathv"))
    variables = NOWHERE | {"OPENAI_API_URL": f"{url}/v1" + ("/chat/completions" if full else "")}
    variables |= {"PYTHONPATH": os.getcwd(), "MODEL_VERSION": "m", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    variables["HF_DATASETS_CACHE"] = str(folder / "cache")
    command = [os.environ.get(PYTHON) or sys.executable, "-m", "tests.suite.support.alone", task.harness_task, task.data.split]
    run = subprocess.run(
        [*command, str(folder), str(folder / "answers.json")], env=os.environ | variables, capture_output=True, text=True
    )
    line = re.search(r"^RESULTS (.*)$", run.stdout, re.MULTILINE)
    assert line, run.stderr[-3000:]
    return json.loads(line[1])


def test_what_is_answered_is_sent_without_media_and_other_prompts_are_not_taken_for_it(running, tmp_path):
    task = TASKS["mme"]
    tasks = tasks_of(running, task, tmp_path / "data")
    _, requests = asked(tasks, task)
    keys = {one.document: ["another", one.request.key] for one in requests}
    _, again = asked(tasks, task, keys | {"2": ["another"]})
    assert [one.answered for one in again] == [name != "2" for name in keys]
    assert [one.request.key for one in again] == [one.request.key for one in requests]
    assert [one.request.media[0].data is None for one in again] == [name != "2" for name in keys]
    answers = answers_of(task, requests)
    answers["1"] = Answer(**{**vars(answers["1"]), "prompt": "Is there a moon?"})
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, Answered(answers), judged)
    assert found.coverage.missing == {OTHER_REQUEST: 1, APART: 1}
    assert [one.missing for one in found.documents[:3]] == [APART, OTHER_REQUEST, None]
    assert found.figures["mme"].missing == "2 of 3 categories: existence missing"


def test_a_missing_video_and_a_missing_picture_are_that_documents_reason(running, tmp_path):
    for name, lost, path in (("videomme", ["2", "3"], "videomme/data/clip1.mp4"), ("ai2d", ["0"], "ai2d-0-image.png")):
        task = TASKS[name]
        tasks = tasks_of(running, task, tmp_path / name)
        (tmp_path / name / path).unlink()
        _, requests = asked(tasks, task)
        assert [one.document for one in requests if one.missing] == lost
        assert all(str(tmp_path / name / path) in one.missing for one in requests if one.missing)
        answers = answers_of(task, [one for one in requests if not one.missing])
        unanswered = {one.document: one.missing for one in requests if one.missing}
        with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
            found = tasks.score(task, Answered(answers, unanswered), judged)
        assert found.coverage.scored == len(requests) - len(lost)
        assert sum(found.coverage.missing.values()) == len(lost)
        assert found.figures[task.rows[0].name].value is not None


def test_a_task_whose_documents_lack_a_column_fails_alone(running, tmp_path):
    (tmp_path / "mme.jsonl").write_text('{"question": "?"}\n')
    tasks = HarnessTasks(running, Options(), {"mme": Local(str(tmp_path / "mme.jsonl"))})
    with pytest.raises(TaskFailed, match=r"mme\.jsonl: has no column 'image'"):
        asked(tasks, TASKS["mme"])
    (tmp_path / "mme.jsonl").write_text('{"question": \n')
    with pytest.raises(TaskFailed, match="line 1 is not JSON"):
        asked(tasks, TASKS["mme"])
    documents, requests = asked(tasks_of(running, TASKS["ai2d"], tmp_path / "ai2d", limit=2), TASKS["ai2d"])
    assert documents == len(requests) == 2


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ConnectionResetError(104, "reset")])
def test_an_error_of_the_program_is_not_taken_for_one_of_the_harness(running, tmp_path, error):
    """A policy's server, or the terminal that the program prints to, may be gone as well."""
    task = TASKS["mme"]
    tasks = tasks_of(running, task, tmp_path / "data")
    with pytest.raises(type(error)), tasks.ask(task, {}, ALONE) as asking:
        next(asking.requests())
        raise error
    assert asked(tasks, task)[0] == 6


@pytest.mark.slow
def test_a_harness_that_is_killed_fails_its_task_and_is_started_again(tmp_path):
    task = TASKS["mme"]
    with Harness(tmp_path / "logs") as running:
        tasks = tasks_of(running, task, tmp_path / "data")
        assert asked(tasks, task)[0] == 6
        running._process.kill()
        running._process.wait()
        assert asked(tasks, task)[0] == 6
