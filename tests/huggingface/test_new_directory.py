"""A directory that is written as a whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.new_directory import new_directory, refuse_existing


def is_made(out, tmp_path):
    refuse_existing(out)
    with new_directory(epath.Path(out)) as made:
        (made.files / "config.json").write_text("{}")
    assert os.listdir(out) == ["config.json"]
    assert not [name for _, folders, _ in os.walk(tmp_path) for name in folders if "partial" in name]


@pytest.mark.parametrize("link", ["out", "models/out"])
def test_what_is_written_to_a_link_to_an_empty_directory_is_in_that_directory(tmp_path, link):
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / link).symlink_to(tmp_path / "disk")
    is_made(tmp_path / link, tmp_path)
    assert (tmp_path / link).is_symlink() and os.listdir(tmp_path / "disk") == ["config.json"]


@pytest.mark.parametrize("name", ["out", "new/out", "empty"])
def test_a_directory_that_is_not_there_or_empty_is_made(tmp_path, name):
    (tmp_path / "empty").mkdir()
    is_made(tmp_path / name, tmp_path)


def test_one_process_at_a_time_writes_it(tmp_path):
    with new_directory(tmp_path / "out") as made:
        (made.files / "config.json").write_text("{}")
        with pytest.raises(UserError, match="is exporting to it"), new_directory(tmp_path / "out"):
            pass
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["config.json"]


@pytest.mark.parametrize("what", ["a directory", "a file"])
def test_what_was_made_meanwhile_is_not_overwritten(tmp_path, what):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="nothing is overwritten"), new_directory(out) as made:
        (made.files / "config.json").write_text("{}")
        if what == "a file":
            out.write_text("another's")
        else:
            out.mkdir()
            (out / "another's").touch()
    assert os.listdir(tmp_path) == ["out"]
    assert out.read_text() == "another's" if what == "a file" else os.listdir(out) == ["another's"]


def test_what_a_killed_export_left_is_replaced(tmp_path):
    code = """
import os, sys
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.new_directory import new_directory
with new_directory(sys.argv[1]) as made:
    (made.files / "stale").write_text("of a killed process")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")]).returncode == 9
    assert os.listdir(tmp_path) == [".out.exporting"]
    is_made(tmp_path / "out", tmp_path)
    assert os.listdir(tmp_path) == ["out"]
