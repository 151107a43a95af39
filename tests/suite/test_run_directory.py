"""run.json: a run goes on with the settings that it was begun with, or says which one differs."""

from __future__ import annotations

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import run_directory

SETTINGS = {"fingerprint": "abc", "dtype": "default", "video_frames": 32}


def test_a_run_goes_on_with_the_same_settings(tmp_path):
    for _ in range(2):
        run_directory.settle(tmp_path / "run", "models/a", SETTINGS)
    found = run_directory.read(tmp_path / "run")
    assert (found["model"], found["settings"], found["judge"]) == ("models/a", SETTINGS, None)


@pytest.mark.parametrize("changed", [{"fingerprint": "xyz"}, {"video_frames": 8}, {"until": True}])
def test_other_settings_are_refused_by_name(tmp_path, changed):
    run_directory.settle(tmp_path, "models/a", SETTINGS)
    with pytest.raises(UserError, match=f"was begun with {next(iter(changed))}.*choose another --out"):
        run_directory.settle(tmp_path, "models/a", SETTINGS | changed)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(UserError, match="something else than a run"):
        run_directory.settle(tmp_path, "models/a", SETTINGS)


def test_a_run_has_one_judge(tmp_path):
    run_directory.settle(tmp_path, "models/a", SETTINGS)
    run_directory.settle_judge(tmp_path, "none")
    run_directory.settle_judge(tmp_path, "gpt-4o")
    run_directory.settle_judge(tmp_path, "none")
    assert run_directory.read(tmp_path)["judge"] == "gpt-4o"
    with pytest.raises(UserError, match="judged by 'gpt-4o', not 'qwen'"):
        run_directory.settle_judge(tmp_path, "qwen")


def test_a_folder_without_a_run_says_what_makes_one(tmp_path):
    with pytest.raises(UserError, match="mmrlhf eval benchmarks --out"):
        run_directory.read(tmp_path)
    (tmp_path / "run.json").write_text('{"version": 99, "settings": {}, "judge": null}')
    with pytest.raises(UserError, match="version 99 of runs, not 1"):
        run_directory.read(tmp_path)
