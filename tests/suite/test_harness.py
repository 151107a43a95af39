"""Every task of the harness on made-up documents: load, prompt, answer, parse, score; and its metrics are the harness's own."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.jobs import ALONE
from mmrlhf_jax.suite.answers import Answer
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness import NAME
from mmrlhf_jax.suite.harness.running import NO_JUDGE, PYTHON, Harness
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.judges.judging import FAILED
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.task import Task, TaskFailed
from tests.serving.fakes import Reply, chat, refusal
from tests.suite import harness, made_up
from tests.suite.judged import judge, judging

OF_THE_HARNESS = [task for task in TASKS.values() if task.harness_task is not None]
SCORED = [task for task in OF_THE_HARNESS if not task.own_metrics]
QUICK = {"mme", "ai2d"}  # the others are slow: a process of the harness takes seconds, and several tasks wait for its judge
each = pytest.mark.parametrize(
    "task",
    [pytest.param(task, id=task.name, marks=() if task.name in QUICK else pytest.mark.slow) for task in SCORED],
)
pytestmark = harness.needed


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with Harness(tmp_path_factory.mktemp("logs")) as found:
        yield found


def tasks_of(running: Harness, task: Task, folder, form: str = "jsonl", **options) -> HarnessTasks:
    local = Local(str(made_up.write(task.harness_task, folder, form=form)))
    return HarnessTasks(running, Options(video_frames=2, **options), {task.name: local})


def asked(tasks: HarnessTasks, task: Task, answered=None):
    with tasks.ask(task, answered or {}, ALONE) as asking:
        return asking.documents, list(asking.requests())


def right(task: Task, number: int) -> str:
    """An answer that a rule may find right, in some of the forms that models write."""
    document = made_up.documents(task.harness_task)[number]
    answer = document.get("answer", document.get("answers", "A"))
    answer = answer[0] if isinstance(answer, list) else answer
    answer = answer["answer"] if isinstance(answer, dict) else str(answer)
    return (answer, f"{answer}.", "no idea, 不知道", f"({answer})", "")[number % 5]


def answers_of(task: Task, requests) -> dict[str, Answer]:
    return {one.document: Answer.to(one.request, right(task, int(one.document)), "stop") for one in requests}


def verdict(text: str) -> Reply:
    """A judge's reply, with the judge's name, without which some tasks take it for a failure."""
    return chat(said(text), model="m")


def said(text: str) -> str:
    """What a judge says in the form that is asked for, which differs between questions."""
    number = hashlib.sha256(text.encode()).digest()[0]
    if "[[A>>B]]" in text or "Assistant A's Answer" in text:
        return ("[[B>A]]", "[[A>B]]", "[[A=B]]")[number % 3]
    if "Python dictionary string" in text:
        return f"{{'score': {number % 6}}}"
    if "Your output:" in text:
        return "ABCD"[number % 4]
    if "Extracted answer:" in text:
        return ("7", "1.5", "B")[number % 3]
    if "[System]" in text:
        return f"{5 + number % 5} {number % 10 + 1}"
    return str(number % 2)


@each
def test_metrics_are_those_of_the_harness_on_the_same_answers(running, tmp_path, task):
    form = "parquet" if len(task.name) % 2 else "jsonl"
    tasks = tasks_of(running, task, tmp_path / "data", form)
    documents, requests = asked(tasks, task)
    assert documents == len(made_up.documents(task.harness_task)) == len(requests)
    assert all(one.missing is None and one.request.texts[-1] and one.request.media for one in requests)
    answers = answers_of(task, requests)
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, answers, {}, judged)
        own = alone(tasks, task, answers, tmp_path, fake.url)
    assert found.harness == NAME and found.coverage.missing == {}, found.coverage
    for row in task.rows:
        keys = [key if "," in key else f"{key},none" for key in row.metrics]
        values = [own[key] for key in keys if key in own]
        assert values, own
        expected = row.scaled(sum(value or 0.0 for value in values))  # mathvista gives 0 as None
        figure = found.figures[row.name]
        assert figure.value is not None and math.isclose(figure.value, expected, abs_tol=1e-9), (row.name, figure, own)
        if len({one.cluster for one in found.documents if one.values.get(row.name) is not None}) > 1:
            assert figure.draws is not None and len(figure.draws) == 1000


def alone(tasks: HarnessTasks, task: Task, answers, folder, url: str) -> dict[str, float | None]:
    """The metrics of the harness's `simple_evaluate`, with its judge at an address."""
    folder = folder / "alone"
    folder.mkdir()
    local = tasks._local[task.name]
    job = {"doing": "score", "task": task.harness_task, "folder": str(folder), "log": str(folder / "log"), "data": local.path}
    (folder / "job.json").write_text(json.dumps(job | {"columns": dict(task.columns)}))
    (folder / "answers.json").write_text(json.dumps({name: answer.answer for name, answer in answers.items()}))
    full = not task.name.startswith(("llava", "mathv"))
    variables = NO_JUDGE | {"OPENAI_API_URL": f"{url}/v1" + ("/chat/completions" if full else "")}
    variables |= {"PYTHONPATH": os.getcwd(), "MODEL_VERSION": "m", "HF_HOME": local.folder, "HF_HUB_OFFLINE": "1"}
    variables["HF_DATASETS_CACHE"] = str(folder / "cache")
    command = [os.environ.get(PYTHON) or sys.executable, "-m", "tests.suite.alone"]
    run = subprocess.run(
        [*command, str(folder / "job.json"), str(folder / "answers.json")],
        env=os.environ | variables,
        capture_output=True,
        text=True,
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
        found = tasks.score(task, answers, {}, judged)
    assert found.coverage.missing == {"its answer was made to another prompt": 1}
    assert found.figures["mme"].missing.startswith("the harness cannot compute mme_perception_score (AssertionError")


def test_a_missing_video_and_a_missing_picture_are_that_documents_reason(running, tmp_path):
    for name, lost, path in (("videomme", ["2", "3"], "videomme/data/clip1.mp4"), ("ai2d", ["0"], "ai2d-0-image.png")):
        task = TASKS[name]
        tasks = tasks_of(running, task, tmp_path / name)
        (tmp_path / name / path).unlink()
        _, requests = asked(tasks, task)
        assert [one.document for one in requests if one.missing] == lost
        assert all(str(tmp_path / name / path) in one.missing for one in requests if one.missing)
        answers = answers_of(task, [one for one in requests if not one.missing])
        refused = {one.document: one.missing for one in requests if one.missing}
        with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
            found = tasks.score(task, answers, refused, judged)
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


def lines_of(name: str, folder) -> list[dict]:
    return [json.loads(line) for line in made_up.write(name, folder).read_text().splitlines()]


def refused(running, name: str, path) -> str:
    """Why a task cannot be asked on a user's own file."""
    with pytest.raises(TaskFailed) as error:
        asked(HarnessTasks(running, Options(video_frames=2), {name: Local(str(path))}), TASKS[name])
    assert str(error.value).startswith(f"--data {name}: {path}") and "\n" not in str(error.value), error.value
    return str(error.value)


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        ("chartqa_lite", {"question": None}, "line 2: 'question' is null; it must hold: text"),
        ("chartqa_lite", {"question": ...}, "line 2: 'question' is missing; it must hold: text"),
        ("chartqa_lite", {"answer": 5}, "line 2: 'answer' must hold a text (text), found 5"),
        ("ai2d", {"options": "a"}, "line 2: 'options' must hold a list (list of texts), found 'a'"),
        ("mmbench_cn_dev", {"A": None}, "line 2: 'A' is null"),
        ("mmbench_cn_dev", {"index": True}, "line 2: 'index' must hold a text or an integer"),
        ("mathverse_testmini_vision_only", {"metadata": "x"}, "line 2: 'metadata' must hold an object"),
        ("mme", {"image": "../m/x.png"}, "line 2: 'image': the picture '../m/x.png' is outside of the folder"),
        ("mme", {"image": 7}, "line 2: 'image': must hold a picture or a path, found 7"),
        ("mme", {"note": [1]}, "a column has values of different types in different documents"),
    ],
)
def test_every_record_of_a_users_own_file_is_checked(running, tmp_path, task, change, says):
    rows = lines_of(task, tmp_path)
    if "note" in change:  # a column that the task does not read
        rows = [row | {"note": "a"} for row in rows]
    rows[1] = {key: value for key, value in (rows[1] | change).items() if value is not ...}
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert says in refused(running, task, path)


def test_files_that_cannot_be_read_say_which_and_what_to_do(running, tmp_path):
    for name, content, says in (
        ("a.jsonl", b'{"question": "caf\xe9"}\n', "line 1 is not UTF-8 (byte 0xe9); convert the file to UTF-8"),
        ("b.jsonl", b"\n", "has no documents"),
        ("c.parquet", b"PAR1", "is not a parquet file that can be read"),
        ("d.jsonl", b"{}\n{", "line 2 is not JSON"),
    ):
        (tmp_path / name).write_bytes(content)
        assert says in refused(running, "ai2d", tmp_path / name)
    empty = pyarrow.Table.from_pylist(
        [{"image": {"bytes": b"", "path": "a"}, "question": "q", "options": ["a"], "answer": "0"}]
    )
    pyarrow.parquet.write_table(empty.slice(0, 0), tmp_path / "e.parquet")
    assert "has no documents" in refused(running, "ai2d", tmp_path / "e.parquet")


def test_pictures_that_are_none_are_that_documents_reason(running, tmp_path):
    for form in ("jsonl", "parquet"):
        path = made_up.write("ai2d", tmp_path / form)
        (path.parent / "ai2d-0-image.png").write_bytes(b"junk")
        if form == "parquet":  # with the hub's description of its columns, and pictures beside it
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            table = pyarrow.Table.from_pylist([row | {"image": {"bytes": None, "path": row["image"]}} for row in rows])
            text = {"dtype": "string", "_type": "Value"}
            features = {name: text for name in rows[0]} | {
                "image": {"_type": "Image"},
                "options": {"feature": text, "_type": "List"},
            }
            described = {"huggingface": json.dumps({"info": {"features": features}})}
            path.unlink()
            path = path.with_suffix(".parquet")
            pyarrow.parquet.write_table(table.replace_schema_metadata(described), path)
        _, requests = asked(HarnessTasks(running, Options(), {"ai2d": Local(str(path))}), TASKS["ai2d"])
        assert requests[0].missing == "image: the file ai2d-0-image.png is no picture that can be read"
        assert [each.missing for each in requests[1:]] == [None] * (len(requests) - 1)
    whole = {"bytes": (path.parent / "ai2d-1-image.png").read_bytes(), "path": "x.png"}
    rows = [row | {"image": whole | ({"bytes": b"junk"} if place == 1 else {})} for place, row in enumerate(rows)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows).replace_schema_metadata(described), path)
    _, requests = asked(HarnessTasks(running, Options(), {"ai2d": Local(str(path))}), TASKS["ai2d"])
    missing = [each.missing for each in requests]  # in a file of the hub, which is taken as it is
    assert missing == [None, "a picture is none that can be read", *[None] * (len(requests) - 2)]


def test_without_its_folder_of_subtitles_a_task_is_not_asked_as_another_one(running, tmp_path):
    task = TASKS["videomme_w_subtitle"]
    tasks = tasks_of(running, task, tmp_path)
    _, requests = asked(tasks, task)
    with judge(verdict) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, answers_of(task, requests), {}, judged)
    assert found.settings["documents_without_subtitles"] == 2  # of the second video
    assert sum("No subtitles available" in one.request.texts[-1] for one in requests) == 2
    shutil.rmtree(tmp_path / "videomme" / "subtitle")
    with pytest.raises(TaskFailed, match=r"videomme/subtitle: there is no such folder; it must hold \{videoID\}\.srt of every"):
        asked(tasks, task)


def test_what_a_judge_refuses_to_read_is_missing_and_no_score(running, tmp_path):
    task = TASKS["mmbench_cn_dev"]
    tasks = tasks_of(running, task, tmp_path / "data")
    _, requests = asked(tasks, task)
    texts = ("A", "I do not know", "C")  # the second one needs a judge
    answers = {one.document: Answer.to(one.request, texts[int(one.document)], "stop") for one in requests}
    with judge(lambda text: refusal(400)) as fake, judging(fake, tmp_path / "verdicts.jsonl") as judged:
        found = tasks.score(task, answers, {}, judged)
    assert (found.coverage.scored, found.coverage.missing) == (2, {FAILED: 1})
    assert found.figures["mmbench"].value == 100.0


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


def test_without_the_harness_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv(PYTHON, "/no/such/python")
    with pytest.raises(UserError, match="MMRLHF_HARNESS_PYTHON: /no/such/python cannot be started"), Harness(tmp_path):
        pass
