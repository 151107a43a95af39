"""`--data TASK=FILE`: which documents of their own tasks have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite.catalogue import TASKS
from mmrlhf_jax.suite.local import Local, fingerprint_of_media, parse
from tests.suite.support import made_up, made_up_own


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "mme.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    return path


def test_a_task_a_benchmark_and_a_folder(tmp_path, lines):
    found = parse([f"mme={lines}", f"pope={tmp_path}"])
    assert sorted(found) == ["mme", "pope_adv", "pope_pop", "pope_random"]
    assert (found["mme"].documents, found["mme"].folder) == (2, str(tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2, 3]}), tmp_path / "more.parquet")
    assert Local(str(tmp_path)).documents == 5
    assert Local(str(tmp_path)).folder == str(tmp_path)


def test_the_fingerprint_is_that_of_the_files(lines):
    before = Local(str(lines)).fingerprint(TASKS["mme"])
    assert Local(str(lines)).fingerprint(TASKS["mme"]) == before
    lines.write_text('{"a": 1}\n')
    assert Local(str(lines)).fingerprint(TASKS["mme"]) != before


def _replaced(path) -> None:
    """Another picture of the same size, a second later."""
    later = path.stat().st_mtime_ns + 10**9
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("form", ["jsonl", "paths", "structs"])
@pytest.mark.parametrize("change", [_replaced, Path.unlink])
def test_the_fingerprint_is_that_of_the_pictures_beside_them_too(tmp_path, form, change):
    path = made_up.write("mme", tmp_path)
    pictures = sorted(tmp_path.glob("*.png"))
    if form != "jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if form == "structs":
            rows = [row | {"image": {"bytes": None, "path": row["image"]}} for row in rows]
        path.unlink()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mme.parquet")
    before = Local(str(tmp_path)).fingerprint(TASKS["mme"])
    change(pictures[-1])
    assert Local(str(tmp_path)).fingerprint(TASKS["mme"]) != before


@pytest.mark.parametrize("file", ["videomme/data/clip0.mp4", "videomme/subtitle/clip0.srt"])
def test_the_fingerprint_is_that_of_videos_and_subtitles_too(tmp_path, file):
    local = Local(str(made_up.write("videomme_w_subtitle", tmp_path)))
    with_subtitles, without = (local.fingerprint(TASKS[name]) for name in ("videomme_w_subtitle", "videomme"))
    _replaced(tmp_path / file)
    assert local.fingerprint(TASKS["videomme_w_subtitle"]) != with_subtitles
    assert (local.fingerprint(TASKS["videomme"]) == without) == file.endswith(".srt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mme", "expected TASK=FILE"),
        ("=x", "expected TASK=FILE"),
        ("mmee=tests/x.jsonl", "did you mean mme"),
        ("mme=/no/such.jsonl", "--data mme: /no/such.jsonl: there is no such file"),
        ("mme=README.md", "neither .parquet nor .jsonl"),
        ("mme=launch", "has no files .parquet or .jsonl"),
    ],
)
def test_what_is_wrong_is_said(value, message):
    with pytest.raises(UserError, match=message):
        parse([value])


def test_a_task_has_one_file(tmp_path, lines):
    other = tmp_path / "other.jsonl"
    other.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match="pope_adv has two files"):
        parse([f"pope={lines}", f"pope_adv={other}"])


def test_hosts_have_the_same_documents_if_names_sizes_and_content_are_the_same(tmp_path):
    """Times are those of a copy."""
    paths = []
    for host in ("a", "b"):
        made_up_own.write(tmp_path / host, "nsfw_text", "jsonl")
        paths.append(tmp_path / host / "nsfw_text.jsonl")
    task, (one, other) = TASKS["nsfw_text"], paths
    os.utime(other, (0, 0))
    os.utime(other.parent / "nsfw_text-0.png", (0, 0))
    first, second = Local(str(one)), Local(str(other))
    assert first.content(task) == second.content(task) and first.fingerprint(task) != second.fingerprint(task)
    whole = other.read_text()
    other.write_text(whole.replace("cats", "rats"))  # of the same length
    assert first.content(task) != second.content(task)
    other.write_text(whole)
    (other.parent / "nsfw_text-0.png").unlink()
    assert first.content(task) != second.content(task)


def test_the_hubs_videos_are_part_of_what_answers_are_made_with(tmp_path):
    task = TASKS["videomme"]
    before = fingerprint_of_media(tmp_path, task)
    made_up.write("videomme", tmp_path)
    there = fingerprint_of_media(tmp_path, task)
    _replaced(tmp_path / "videomme/data/clip1.mp4")
    assert len({before, there, fingerprint_of_media(tmp_path, task)}) == 3
    assert fingerprint_of_media(tmp_path, TASKS["mme"]) is None


def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR0")
    with pytest.raises(UserError, match="not a parquet file that can be read"):
        _ = Local(str(tmp_path / "a.parquet")).documents
    with pytest.raises(UserError, match=f"--data mme: {tmp_path}/a.parquet: "):
        parse([f"mme={tmp_path}/a.parquet"])
