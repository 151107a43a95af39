"""A directory that is written as a whole or not at all."""

from __future__ import annotations

import os

import pytest
from etils import epath

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
