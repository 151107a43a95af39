"""The options of `mmrlhf eval benchmarks` and `safety-bench`: what is refused at once, and what a plan says."""

from __future__ import annotations

import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import typer
from typer.testing import CliRunner

from mmrlhf_jax.cli import app
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.catalogue import TASKS

VERBS = ["benchmarks", "safety-bench"]
SERVED = ("--policy-endpoint", "http://127.0.0.1:9/v1", "--out", "y")


def run(*arguments: str, verb: str = "benchmarks") -> None:
    app(["eval", verb, *arguments], standalone_mode=False)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --model or --policy-endpoint"),
        (["--model", "x", "--policy-endpoint", "http://y"], "give one of --model and --policy-endpoint, not both"),
        (["--model", "x"], "give --out"),
        (["--model", "x", "--policy-model", "z"], "--policy-model is the name of a model at --policy-endpoint"),
        (["--model", "x", "--judge-model", "z"], "--judge-model is the name of a model at --judge; give its address"),
        (["--model", "x", "--judge-concurrency", "2"], "--judge-concurrency is of a judge; give its address by --judge"),
        (["--model", "x", "--concurrency", "8"], "--concurrency is of --policy-endpoint, and --model answers in this process"),
        ([*SERVED, "--dtype", "float32"], "--dtype says how a model is loaded here"),
        ([*SERVED, "--batch", "16"], "--batch says how a model is loaded here"),
        ([*SERVED, "--against", "http://127.0.0.1:8/v1", "--slots", "128"], "--slots says how a model is loaded here"),
        (["--plan", "--json"], "--json is of a run's figures, and --plan makes none"),
        (["--plan", "--workers", "2", *SERVED], "--workers says how a model is loaded here"),
        (["--benchmark", ""], "--benchmark: names no benchmark; leave it out for all"),
        (["--plan", "--benchmark", "nsfw_text", "--benchmark", ","], "--benchmark: names no benchmark; leave it out for all"),
        (["--plan", "--judge", "there"], "--judge there: not an address; give http://HOST:PORT"),
        (["--plan", "--attack-judge", "http://x/?y"], "--attack-judge http://x/?y: something follows the path"),
        (["--plan", "--policy-endpoint", "ftp://x"], "--policy-endpoint ftp://x: not an address"),
        (["--plan", "--against", "x:80"], "--against x:80: an address of a server begins with http://"),
        (["--plan", "--against", "http://a:b@x"], "--against http://***@x: the address has a name or a password in it"),
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_what_contradicts_itself_or_has_no_effect_is_refused(verb, arguments, says):
    with pytest.raises(UserError, match=re.escape(says)):
        run(*arguments, verb=verb)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dimensions", "ocr,maths"], "--dimensions maths: choose from conversation, general"),
        (
            ["--benchmark", "nme"],
            "--benchmark nme: is no benchmark; did you mean mme? `mmrlhf eval benchmarks --list`",
        ),
        (["--benchmark", "foo"], "--benchmark foo: is no benchmark; `mmrlhf eval benchmarks --list` names all"),
        (["--benchmark", "safety"], "--benchmark safety: is no benchmark but a dimension: --dimensions safety"),
        (["--data", "foo=x.jsonl"], "--data foo: is no benchmark; `mmrlhf eval benchmarks --list` names all"),
        (["--dimensions", ""], "--dimensions: names no dimension; leave it out for all"),
        (["--dimensions", "ocr", "--dimensions", " , "], "--dimensions: names no dimension; leave it out for all"),
        (["--list", "--benchmark", ""], "--benchmark: names no benchmark; leave it out for all"),
        (["--benchmark", "mme", "--data", "ai2d=README.md"], "neither .parquet nor .jsonl"),
        (["--benchmark", "mme", "--data", "ai2d=tests"], "has no files .parquet or .jsonl"),
        (["--list", "--model", "x"], "--model is of a run, and --list runs nothing"),
        (["--list", "--plan"], "--plan is of a run, and --list runs nothing"),
    ],
)
def test_what_there_is_not_is_said_at_once(arguments, says):
    with pytest.raises(UserError, match=re.escape(says)):
        run(*arguments)


@pytest.mark.parametrize("option", ["--model", "--out", "--against", "--launch"])
def test_an_empty_place_is_not_the_current_folder(option):
    with pytest.raises(typer.BadParameter, match="it is empty; name a place, or leave it out"):
        run("--plan", "--benchmark", "mme", option, "")


@pytest.mark.parametrize("name", ["ai2d", "mmhal_bench", "pope"])
def test_files_without_documents_are_refused(tmp_path, name):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=re.escape(f"--data {name}: {tmp_path / 'a.jsonl'}: has no documents")):
        run("--plan", "--benchmark", name, "--data", f"{name}={tmp_path / 'a.jsonl'}")


AI2D = {"image": "x.png", "question": "?", "options": ["a", "b"], "answer": "0"}
MMHAL = {"image": "x.png", "question": "?", "gt_answer": "a", "answer": "", "image_content": ["a"], "question_type": "other"}
VIDEO = dict.fromkeys(("videoID", "question_id", "question", "answer", "duration", "domain", "sub_category", "task_type"), "a")


@pytest.mark.parametrize(
    ("name", "document", "says"),
    [
        ("ai2d", AI2D | {"question": ...}, "a.jsonl: line 2: 'question' is missing; it must hold: text"),
        ("ai2d", AI2D | {"options": "a"}, "a.jsonl: line 2: 'options' must hold a list"),
        ("ai2d", AI2D | {"image": ...}, "a.jsonl: line 2: 'image': its picture is missing"),
        ("ai2d", AI2D | {"image": "y.png"}, "a.jsonl: line 2: 'image': its picture is missing"),
        ("ai2d", AI2D | {"image": "../y.png"}, "a.jsonl: line 2: 'image': the picture '../y.png' is outside"),
        ("mmhal_bench", MMHAL | {"question": 5}, "a.jsonl: line 2: column 'question' must hold a text, found 5"),
        ("mmhal_bench", MMHAL | {"image_content": "a"}, "must hold a list of texts, found 'a'"),
        ("videomme", VIDEO | {"options": ["a"]}, "videomme/data: there is no such folder; it must hold {videoID}.mp4"),
    ],
)
def test_a_plan_says_what_of_local_data_cannot_be_used_and_fails(tmp_path, capsys, name, document, says):
    (tmp_path / "x.png").write_bytes(b"")
    lines = ["", json.dumps({key: value for key, value in document.items() if value is not ...}), "not looked at yet"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"^--data: the files of {name} cannot be used as they are; the reasons are above$"):
        run("--plan", "--benchmark", name, "--data", f"{name}={tmp_path / 'a.jsonl'}")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be used as it is" in line]
    assert line.startswith(f"  cannot be used as it is: --data {name}: {tmp_path}") and says in line


@pytest.mark.parametrize(("name", "document"), [("ai2d", AI2D), ("mmhal_bench", MMHAL)])
def test_sound_local_data_are_planned(tmp_path, capsys, name, document):
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "a.jsonl").write_text(json.dumps(document))
    run("--plan", "--benchmark", name, "--data", f"{name}={tmp_path / 'a.jsonl'}")
    assert "cannot be used" not in capsys.readouterr().err


def test_the_columns_of_parquet_files_are_looked_at(tmp_path, capsys):
    found = pyarrow.Table.from_pylist([AI2D | {"options": "a"}])
    pyarrow.parquet.write_table(found, tmp_path / "a.parquet")
    pyarrow.parquet.write_table(found.drop_columns(["image"]), tmp_path / "b.parquet")
    for name, says in (("a", "a.parquet: document 0: 'options' must hold a list"), ("b", "b.parquet: has no column 'image'")):
        with pytest.raises(UserError, match="the files of ai2d cannot be used"):
            run("--plan", "--benchmark", "ai2d", "--data", f"ai2d={tmp_path / name}.parquet")
        assert says in capsys.readouterr().err


def test_the_help_of_both_verbs_has_the_options_of_an_evaluation_and_those_of_its_own():
    found = {verb: CliRunner().invoke(app, ["eval", verb, "--help"], env={"COLUMNS": "200"}).stdout for verb in VERBS}
    for said in found.values():
        assert all(
            f"{option} " in said for option in ("--model", "--judge", "--data", "--plan", "--json", "--limit", "--slots")
        )
    assert [said.count("--dimensions ") > 0 for said in found.values()] == [True, False]


def test_data_of_a_task_that_is_not_run(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"--data ai2d=\.\.\.: this task is not among those that are run"):
        run("--plan", "--benchmark", "mme", "--data", f"ai2d={tmp_path / 'a.jsonl'}")


def test_without_names_every_benchmark_and_the_safety_suite_are_planned(capsys, empty_cache):
    run("--plan")
    said = capsys.readouterr().err
    assert said.startswith(f"{len(TASKS)} tasks with about ")
    assert all(name in said for name in ("adv_target", "vlguard_unsafes", "lmms-eval/Video-MME 101 GB"))
    run("--plan", verb="safety-bench")
    assert capsys.readouterr().err.startswith("8 tasks with about 2,518 documents")


def test_names_and_dimensions_are_a_union_and_take_commas(capsys, empty_cache):
    run("--plan", "--dimensions", "ocr", "--benchmark", "mme,ai2d", "--benchmark", "ocrbench")
    assert capsys.readouterr().err.startswith("5 tasks with about ")


@pytest.mark.parametrize("base", ["models/base", "http://127.0.0.1:8/v1"])
def test_a_plan_says_that_the_base_needs_as_much(capsys, empty_cache, base):
    run("--plan", "--benchmark", "mme", "--against", base)
    assert "the base (--against) answers the same" in capsys.readouterr().err


def test_options_of_loading_are_those_of_a_base_that_is_loaded_here(capsys, empty_cache):
    run("--plan", "--benchmark", "mme", *SERVED, "--against", "models/base", "--dtype", "float32")
    run("--plan", "--benchmark", "mme", "--model", "x", "--against", "http://127.0.0.1:8/v1", "--concurrency", "2")
