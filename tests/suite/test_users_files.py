"""Users' own files of documents, as the harness's tasks read them: what cannot be used is said with file, line and key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmrlhf_jax.suite.answers import Answered
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.harness.source import HarnessTasks, Options
from mmrlhf_jax.suite.local import Local
from mmrlhf_jax.suite.task import TaskFailed
from tests.suite.support import harness, made_up
from tests.suite.support.harness import answers_of, asked, tasks_of, verdict
from tests.suite.support.judged import judge, judging

pytestmark = harness.needed


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
        ("mme", {"image": "m/\0.png"}, "line 2: 'image': 'm/\\x00.png' is no path"),
        ("mme", {"image": {"bytes": None, "path": "m/\0.png"}}, "line 2: 'image': 'm/\\x00.png' is no path"),
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


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(("task", "key"), [("chartqa_lite", "question"), ("mmerealworld_lite", "multi-choice options")])
def test_every_record_of_a_parquet_file_is_checked_too(running, tmp_path, task, key, described):
    rows = lines_of(task, tmp_path)
    pictures = [name for name, holds in TASKS[task].columns.items() if holds == "image"]
    for row in rows:
        row |= {name: {"bytes": (tmp_path / row[name]).read_bytes(), "path": None} for name in pictures}
    rows[1][key] = None
    table = pyarrow.Table.from_pylist(rows)
    if described:
        table = table.replace_schema_metadata({"huggingface": "{}"})
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")
    assert f"document 1: {key!r} is null; it must hold: " in refused(running, task, tmp_path / "own.parquet")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_few_pictures_of_a_file_are_in_memory_at_a_time(tmp_path, form):
    """They have 216 MB; and none is kept where they are not needed, although each counts in its document's digest."""
    pixels = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    lines = []
    for number in range(200):
        pixels[0, 0] = number
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", compress_level=0)
        lines.append({"image": f"{number}.png", "question": "q", "note": "late" if number == 199 else None})
    path = tmp_path / f"d.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path)
    found = {}
    for pictures in ("True", "False"):
        (folder := tmp_path / pictures).mkdir()
        command = [harness.python(), "-m", "tests.suite.support.local_data_alone", str(path), str(folder), pictures]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
        assert not done.returncode, done.stderr[-2000:]
        found[pictures] = json.loads(done.stdout.splitlines()[-1])
        assert found[pictures]["taken"] < 180, found[pictures]["taken"]
    size = (tmp_path / "0.png").stat().st_size
    assert found["True"]["sizes"] == [size] * 200 and found["False"]["sizes"] == [None] * 200
    assert found["True"]["digests"] == found["False"]["digests"] and len(set(found["True"]["digests"])) == 200


def test_a_file_of_the_hub_is_used_as_it_is_also_where_pictures_may_be_null(running, tmp_path):
    task = TASKS["llava_interleave_bench_in_domain"]
    path = made_up.write(task.harness_task, tmp_path, form="parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    rows[1]["sample_id"] = None  # of which no question is made
    picture, text = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}), {"dtype": "string", "_type": "Value"}
    schema = pyarrow.schema({name: picture if name.startswith("image") else pyarrow.string() for name in rows[0]})
    features = {name: {"_type": "Image"} if name.startswith("image") else text for name in rows[0]}
    described = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, described), path)
    _, requests = asked(HarnessTasks(running, Options(), {task.name: Local(str(path))}), task)
    assert [each.missing for each in requests] == [None] * len(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
    assert "document 1: 'sample_id' is null" in refused(running, task.name, path)


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
        found = tasks.score(task, Answered(answers_of(task, requests)), judged)
    assert found.settings["documents_without_subtitles"] == 2  # of the second video
    assert sum("No subtitles available" in one.request.texts[-1] for one in requests) == 2
    shutil.rmtree(tmp_path / "videomme" / "subtitle")
    with pytest.raises(TaskFailed, match=r"videomme/subtitle: there is no such folder; it must hold \{videoID\}\.srt of every"):
        asked(tasks, task)
