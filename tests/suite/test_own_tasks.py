"""The tasks that are graded here, from their documents to their results, with judges that fail as judges do."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from mmrlhf_jax import cli
from mmrlhf_jax.inference import endpoint
from mmrlhf_jax.inference.jobs import ALONE, Share
from mmrlhf_jax.suite import catalogue, results
from mmrlhf_jax.suite.answers import Answer, Answered
from mmrlhf_jax.suite.judges.judging import FAILED, NO_JUDGE, NOT_READ, Judging
from mmrlhf_jax.suite.judges.verdicts import Verdicts, verdicts_path
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.own.tasks import METRICS, NO_VALUE, OwnTasks
from mmrlhf_jax.suite.reasons import BEYOND_LIMIT, NO_PICTURE, NOT_ANSWERED, OTHER_REQUEST
from mmrlhf_jax.suite.task import TaskFailed
from tests.serving.fakes import refusal
from tests.suite.support import made_up_own
from tests.suite.support.judged import judge, judging
from tests.suite.support.made_up_own import OF_SAFETY

OWN = [name for name, task in catalogue.TASKS.items() if task.own_metrics]
ANSWERS = ("A dog and a cat.", "I'm sorry, I cannot help with that.", "")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(endpoint, "_pause", lambda *_: 0.0)


def tasks(folder, name: str, kind: str = "parquet", **options) -> OwnTasks:
    return OwnTasks({name: Local(str(made_up_own.write(folder, name, kind)))}, **options)


def answered(own: OwnTasks, name: str, texts=ANSWERS) -> dict[str, Answer]:
    """The answers of a policy that says these texts."""
    with own.ask(catalogue.TASKS[name], {}, ALONE) as asking:
        requests = [each.request for each in asking.requests() if each.request is not None]
    return {each.document: Answer.to(each, texts[int(each.document)], "stop") for each in requests}


def says(text: str) -> str:
    """A judge of every task."""
    if "Rating: 6" in text:
        return "Fine.\nRating: 4"
    if "[Assistant 1]" in text:
        return "10 8\nBecause."
    return "No." if "low image quality" in text else "Yes."


def scored(own: OwnTasks, name: str, directory, answers, judge_says=says, unanswered=None) -> results.Results:
    """The results, as they are read back from their files."""
    with judge(judge_says) as fake, judging(fake, verdicts_path(directory, name)) as found:
        results.write(directory, own.score(catalogue.TASKS[name], Answered(answers, unanswered or {}), found))
    return results.read(directory, name)


# By hand: the answers talk of a dog and a cat, refuse, and say nothing; the judge says yes to everything but noise.
EXPECTED = {
    "llava_wilder_small": {"llava_wilder": 80},
    "mmhal_bench": {"mmhal_score": 4, "mmhal_rate": 0},
    # The documents hold cat and chair, dog and chair, bird and chair: the dog of the first answer is not there.
    "object_hallucination": {"chair_i": 50, "chair_s": 100 / 3},
    "adv_target": {"adv_target": 200 / 3},
    "adv_untarget": {"adv_untarget": 200 / 3},
    "crossmodel": {"crossmodel_asr": 200 / 3, "crossmodel_rta": 0},
    "multimodel": {"multimodel_asr": 200 / 3, "multimodel_rta": 0},
    "typographic": {"typographic_asr": 200 / 3, "typographic_rta": 0},
    "risk_identification": {"risk_identification": 200 / 3},
    "nsfw_text": {"nsfw_text_asr": 100 / 3},
    "nsfw_image": {"nsfw_image_asr": 100 / 3},
}
PAPER = EXPECTED | {
    **{name: {row: 100 for row in rows} for name, rows in EXPECTED.items() if name.startswith(("adv", "risk"))},
    **{name: {f"{name}_asr": 100, f"{name}_rta": 0} for name in ("crossmodel", "multimodel", "typographic")},
    **{name: {f"{name}_asr": 200 / 3} for name in ("nsfw_text", "nsfw_image")},
}


@pytest.mark.parametrize("name", OWN)
def test_from_documents_to_figures(name, tmp_path):
    for mode, expected in (("corrected", EXPECTED), ("paper", PAPER)):
        own = tasks(tmp_path / "data", name, mode=mode)
        found = scored(own, name, tmp_path / mode, answered(own, name))
        figures = {row: each.value for row, each in found.figures.items()}
        assert figures == pytest.approx(expected[name], abs=1e-6), mode
        assert found.settings["mode"] == mode and found.harness == METRICS
        assert found.settings.get("judge") == (None if catalogue.TASKS[name].judge == "none" else "m")
        assert found.coverage == results.Coverage(3, 3, 3, {})
        assert all(each.draws is None or len(each.draws) == 1000 for each in found.figures.values())


@pytest.mark.parametrize("name", ["mmhal_bench", "risk_identification", "nsfw_text"])
def test_json_lines_with_pictures_beside_them_ask_the_same(name, tmp_path):
    asked = []
    for kind in ("parquet", "jsonl"):
        own = tasks(tmp_path / kind, name, kind)
        with own.ask(catalogue.TASKS[name], {}, ALONE) as asking:
            asked.append([each.request.key for each in asking.requests()])
    assert asked[0] == asked[1] and len(set(asked[0])) == made_up_own.COUNT


def test_hosts_share_the_documents_and_what_is_answered_is_said(tmp_path):
    own, task = tasks(tmp_path, "nsfw_text"), catalogue.TASKS["nsfw_text"]
    with own.ask(task, {}, Share(1, 2)) as asking:
        (only,) = asking.requests()
        assert only.document == "1" and asking.documents == 3 and not only.answered
    with own.ask(task, {"0": ["another"], "1": ["another", only.request.key]}, ALONE) as asking:
        assert [each.answered for each in asking.requests()] == [False, True, False]
    assert only.request.options == {"max_new_tokens": 2048, "temperature": 0.0}
    assert only.request.prompt == "Tell me about dogs." and only.request.texts[0] == ""


def test_the_corrected_metrics_are_the_default_and_no_settings_are_the_papers(tmp_path):
    for name in OWN:
        task, local = catalogue.TASKS[name], {name: Local("/nowhere.jsonl")}
        assert OwnTasks(local).settings(task)["mode"] == "corrected"
        assert OwnTasks(local).settings(task) != OwnTasks(local, "paper").settings(task)


def test_a_limit_is_said_and_asked(tmp_path):
    own = tasks(tmp_path, "nsfw_text", limit=2)
    answers = answered(own, "nsfw_text")
    found = scored(own, "nsfw_text", tmp_path / "out", answers)
    assert sorted(answers) == ["0", "1"] and found.figures["nsfw_text_asr"].value == 50
    assert found.coverage == results.Coverage(3, 2, 2, {BEYOND_LIMIT: 1})


# What is missing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OWN if catalogue.TASKS[name].judge == "always"])
def test_a_judge_that_fails_or_talks_nonsense_leaves_its_documents_out(name, tmp_path):
    texts = ("One answer.", "Another answer.", "A third answer.")

    def judge_says(text: str):
        return refusal(400) if texts[0] in text else "banana" if texts[1] in text else says(text)

    own = tasks(tmp_path, name)
    found = scored(own, name, tmp_path / "out", answered(own, name, texts), judge_says)
    assert [each.missing for each in found.documents] == [FAILED, NOT_READ, None]
    assert found.coverage == results.Coverage(3, 3, 1, {FAILED: 1, NOT_READ: 1})
    assert all(each.value is not None for each in found.figures.values())
    own = tasks(tmp_path, name)
    dead = scored(own, name, tmp_path / "dead", answered(own, name, texts), lambda _: refusal(500, "down"))
    assert {each.value for each in dead.figures.values()} == {None} and dead.coverage.scored == 0


def test_without_a_judge_nothing_is_scored_that_needs_one(tmp_path):
    own = tasks(tmp_path, "typographic")
    answers = answered(own, "typographic")
    with Verdicts(tmp_path / "v.jsonl") as verdicts:
        found = own.score(catalogue.TASKS["typographic"], Answered(answers), Judging(None, verdicts))
    assert [each.missing for each in found.documents] == [NO_JUDGE, NO_JUDGE, None]  # nothing was said in the last one


def test_answers_and_pictures_that_are_not_there(tmp_path):
    path = made_up_own.write(tmp_path, "nsfw_text", "jsonl")
    (tmp_path / "nsfw_text-0.png").unlink()
    own = OwnTasks({"nsfw_text": Local(str(path))})
    answers = answered(own, "nsfw_text")
    assert sorted(answers) == ["1", "2"]
    found = scored(own, "nsfw_text", tmp_path / "out", {"1": answers["1"]}, unanswered={"2": "too long"})
    assert [each.missing for each in found.documents] == [NO_PICTURE, None, "too long"]
    found = scored(own, "nsfw_text", tmp_path / "out", {"1": answers["1"]})
    assert [each.missing for each in found.documents] == [NO_PICTURE, None, NOT_ANSWERED]
    path.write_text(path.read_text().replace("dogs", "wolves"))
    own = OwnTasks({"nsfw_text": Local(str(path))})
    found = scored(own, "nsfw_text", tmp_path / "out", {"1": answers["1"]})
    assert found.documents[1].missing == OTHER_REQUEST
    assert found.figures["nsfw_text_asr"].value is None and found.figures["nsfw_text_asr"].missing is not None


def test_an_answer_to_another_picture_or_with_other_options_is_no_answer_and_a_refusal_wins(tmp_path):
    path = made_up_own.write(tmp_path, "nsfw_text", "jsonl")
    answers = answered(OwnTasks({"nsfw_text": Local(str(path))}), "nsfw_text")
    for place in (0, 1):
        shown = (tmp_path / f"nsfw_text-{1 - place}.png").read_bytes()
        (tmp_path / f"nsfw_text-{place}.png").write_bytes(shown + b" ")
    other = dataclasses.replace(answers["2"], key="of other options", options={"max_new_tokens": 8})
    found = scored(OwnTasks({"nsfw_text": Local(str(path))}), "nsfw_text", tmp_path / "out", answers | {"2": other})
    assert [each.missing for each in found.documents] == [OTHER_REQUEST] * 3
    assert {each.value for each in found.figures.values()} == {None}
    again = answered(own := OwnTasks({"nsfw_text": Local(str(path))}), "nsfw_text")
    found = scored(own, "nsfw_text", tmp_path / "again", again, unanswered={"1": "too long"})
    assert [each.missing for each in found.documents] == [None, "too long", None]


def test_an_answer_without_any_object_has_no_part_in_chair_i(tmp_path):
    own = tasks(tmp_path, "object_hallucination")
    found = scored(own, "object_hallucination", tmp_path / "out", answered(own, "object_hallucination", ("", "Yes.", "(A)")))
    assert found.figures["chair_i"] == results.Figure(None, NO_VALUE) and found.figures["chair_s"].value == 0
    assert found.coverage.scored == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "line 1 is not JSON"),
        ("[]\n", "line 1 must be an object"),
        ('{"question": "a", "answer": "Yes"}\n', "line 1: has no column 'image'"),
        ('{"question": "a", "answer": "Yes", "image": 3}\n', "must hold a picture or a path, found 3"),
        ('{"question": 3, "answer": "Yes", "image": "a"}\n', "column 'question' must hold a text, found 3"),
        ('{"question": "a", "answer": "Yes", "image": "../a.png"}\n', "is outside of the folder of the file"),
        ('{"question": "a", "answer": "Yes", "image": "/etc/hostname"}\n', "is outside of the folder of the file"),
        ('{"question": "a", "answer": "Yes", "image": "a", "category": "robustness/adversarial-target"}\n', "another task's"),
        ("\n", "no documents"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_fails_its_task(content, says, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    own = OwnTasks({"nsfw_text": Local(str(path))})
    with pytest.raises(TaskFailed, match=f"--data nsfw_text: {path}.*{says}"), own.ask(catalogue.TASKS["nsfw_text"], {}, ALONE):
        pass


@pytest.mark.parametrize(("of", "task"), [*itertools.permutations([*OF_SAFETY, "nsfw_text"], 2)])
def test_the_file_of_another_task_is_refused(of, task, tmp_path):
    own = OwnTasks({task: Local(str(made_up_own.write(tmp_path, of)))})
    with pytest.raises(TaskFailed), own.ask(catalogue.TASKS[task], {}, ALONE):
        pass


def test_a_picture_that_cannot_be_opened_is_missing_and_ends_nothing(tmp_path, monkeypatch):
    path = made_up_own.write(tmp_path, "nsfw_text", "jsonl")
    (tmp_path / "nsfw_text-1.png").unlink()
    (tmp_path / "nsfw_text-1.png").mkdir()
    own = OwnTasks({"nsfw_text": Local(str(path))})
    with own.ask(catalogue.TASKS["nsfw_text"], {}, ALONE) as asking:
        missing = [each.missing for each in asking.requests()]
    assert missing == [None, "its picture cannot be read (Is a directory)", None]


def test_a_damaged_parquet_file_fails_its_task(tmp_path):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1")
    own = OwnTasks({"nsfw_text": Local(str(path))})
    with pytest.raises(TaskFailed, match="not a readable parquet file"), own.ask(catalogue.TASKS["nsfw_text"], {}, ALONE):
        pass


def test_without_the_hub_a_task_without_data_fails_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskFailed) as found, OwnTasks({}).ask(catalogue.TASKS["nsfw_text"], {}, ALONE):
        pass
    assert "kirito011024/vlguard_safe_unsafes" in str(found.value) and "\n" not in str(found.value)


# A kill ----------------------------------------------------------------------------------------------------------------

KILLED = """
import sys
from tests.suite import test_own_tasks as t
from tests.suite.support.judged import judging
from tests.serving.fakes import Fake
fake, folder = Fake(), sys.argv[2]
fake.url = sys.argv[1]
own = t.tasks(t.made_up_own.Path(folder) / "data", "adv_target")
with judging(fake, t.verdicts_path(folder, "adv_target")) as found:
    own.score(t.catalogue.TASKS["adv_target"], t.Answered(t.answered(own, "adv_target", ("a", "b", "c"))), found)
"""


@pytest.mark.long
def test_a_kill_in_the_middle_of_judging_changes_nothing(tmp_path):
    path = verdicts_path(tmp_path, "adv_target")
    own = tasks(tmp_path / "data", "adv_target")
    answers = answered(own, "adv_target", ("a", "b", "c"))
    whole = scored(own, "adv_target", tmp_path / "whole", answers)
    asked = []

    def slow(text: str) -> str:
        asked.append(text)
        time.sleep(0.05 if len(asked) < 4 else 60)
        return says(text)

    with judge(slow) as fake:
        process = subprocess.Popen([sys.executable, "-c", KILLED, fake.url, str(tmp_path)], cwd=os.getcwd())
        deadline = time.monotonic() + 90
        while (not path.exists() or path.read_text().count("\n") < 3) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    stored = {json.loads(line)["key"] for line in path.read_text().splitlines()}
    assert len(stored) == 3
    again = []
    found = scored(own, "adv_target", tmp_path, answers, lambda text: again.append(text) or says(text))
    assert len(again) == 3 and found == whole
    assert math.isclose(found.figures["adv_target"].value, 100)


# The verb --------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_eval_benchmarks_runs_them_without_the_harness(tmp_path, capsys, monkeypatch):
    """Also where lmms-eval is not installed, since none of its tasks is among them."""
    monkeypatch.setenv("MMRLHF_HARNESS_PYTHON", "/nowhere")
    names = ["llava_wilder_small", "mmhal_bench", "object_hallucination"]
    data = [f"--data={name}={made_up_own.write(tmp_path / 'data', name)}" for name in names]
    with judge(lambda text: "A dog and a cat.") as policy, judge(says) as judged:
        arguments = [
            "eval",
            "benchmarks",
            "--policy-endpoint",
            policy.url,
            "--judge",
            judged.url,
            "--benchmark",
            ",".join(names),
        ]
        cli.app([*arguments, *data, "--out", str(tmp_path / "out"), "--json"], standalone_mode=False)
    rows = {row["name"]: row["model"]["value"] for row in json.loads(capsys.readouterr().out)["rows"]}
    # Of the cat, the dog and the bird documents: one object of two is there, one of two, none.
    assert (rows["llava_wilder"], rows["mmhal_score"], rows["mmhal_rate"], rows["chair_s"]) == (80, 4, 0, 100)
    assert rows["chair_i"] == pytest.approx(400 / 6) and rows["mmstar"] is None
    assert (tmp_path / "out" / "report.html").exists()
