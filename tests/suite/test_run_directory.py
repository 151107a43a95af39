"""run.json: a run goes on with the model and the options that it was begun with, or says which one differs."""

from __future__ import annotations

import pytest

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.suite import run_directory

IDENTITY, OPTIONS = {"fingerprint": "abc", "tokenizer": "def"}, {"metrics": "corrected"}


def settle(directory, model="models/a", identity=IDENTITY, options=OPTIONS) -> None:
    run_directory.settle(directory, model, identity, options)


def test_a_run_goes_on_with_the_same_settings(tmp_path):
    for _ in range(2):
        settle(tmp_path / "run")
    found = run_directory.read(tmp_path / "run")
    assert (found["model"], found["settings"], found["judge"]) == ("models/a", IDENTITY | OPTIONS, None)


@pytest.mark.parametrize("changed", [{"fingerprint": "xyz"}, {"tokenizer": None}])
def test_another_model_is_refused_and_both_are_named(tmp_path, changed):
    settle(tmp_path)
    (name,) = changed
    with pytest.raises(UserError, match=f"is a run of models/a with {name} '.*', and that of models/b is .*; choose another"):
        settle(tmp_path, "models/b", IDENTITY | changed)


SERVED = {"model": "m"}


@pytest.mark.parametrize(("first", "second"), [(IDENTITY, SERVED), (SERVED, IDENTITY)])
@pytest.mark.long
def test_a_model_of_a_directory_and_one_of_a_server_have_no_run_in_common(tmp_path, first, second):
    settle(tmp_path, "models/a", first)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(UserError, match=r"is a run of models/a, for which run\.json has no .*; choose another --out"):
        settle(tmp_path, "m", second)
    assert (tmp_path / "run.json").read_text() == before


def test_how_a_model_is_loaded_is_noted_when_it_is_said(tmp_path):
    settle(tmp_path)
    run_directory.settle(tmp_path, "models/a", IDENTITY, OPTIONS, {"dtype": "float32"})
    with pytest.raises(UserError, match="with dtype 'float32', and that of models/a is 'bfloat16'"):
        run_directory.settle(tmp_path, "models/a", IDENTITY, OPTIONS, {"dtype": "bfloat16"})


def test_other_options_are_refused_by_name_and_new_ones_are_added(tmp_path):
    settle(tmp_path)
    with pytest.raises(UserError, match="was begun with metrics 'corrected', not 'paper'"):
        settle(tmp_path, options={"metrics": "paper"})
    settle(tmp_path, options=OPTIONS | {"harness": "lmms-eval 0.7.3"})
    settle(tmp_path)  # without a task of the harness
    assert run_directory.read(tmp_path)["settings"]["harness"] == "lmms-eval 0.7.3"


def test_what_really_answers_is_noted_and_then_counts(tmp_path):
    settle(tmp_path)
    run_directory.note(tmp_path, "models/a", {"dtype": "bfloat16"})
    settle(tmp_path)
    with pytest.raises(UserError, match="models/a with dtype 'bfloat16', and that of models/a is 'float32'"):
        run_directory.note(tmp_path, "models/a", {"dtype": "float32"})  # a host without an accelerator
    with pytest.raises(UserError, match="dtype"):
        run_directory.settle(tmp_path, "models/a", IDENTITY, OPTIONS, {"dtype": "float32"})


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(UserError, match="something else than a run"):
        settle(tmp_path)


def test_a_run_has_one_judge(tmp_path):
    settle(tmp_path)
    for judges in ({}, {"judge": "gpt-4o"}, {}, {"attack_judge": "harmbench", "attack_classifier": False}):
        run_directory.settle_judges(tmp_path, judges)
    found = run_directory.read(tmp_path)
    assert (found["judge"], found["attack_judge"], found["attack_classifier"]) == ("gpt-4o", "harmbench", False)
    with pytest.raises(UserError, match="judged by 'gpt-4o', not 'qwen'"):
        run_directory.settle_judges(tmp_path, {"judge": "qwen"})
    with pytest.raises(UserError, match="begun with attack_classifier False, not True"):
        run_directory.settle_judges(tmp_path, {"attack_classifier": True})


def test_the_base_is_kept_until_another_one_is_given(tmp_path):
    settle(tmp_path / "run")
    assert run_directory.settle_base(tmp_path / "run", None) is None
    run_directory.settle_base(tmp_path / "run", tmp_path / "run" / "against")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run_directory.settle_base(tmp_path / "moved", None) == tmp_path / "moved" / "against"
    run_directory.settle_base(tmp_path / "moved", tmp_path / "base")
    assert run_directory.settle_base(tmp_path / "moved", None) == tmp_path / "base"


def test_a_folder_without_a_run_says_what_makes_one(tmp_path):
    with pytest.raises(UserError, match="mmrlhf eval benchmarks --out"):
        run_directory.read(tmp_path)
    (tmp_path / "run.json").write_text('{"version": 99, "settings": {}, "judge": null}')
    with pytest.raises(UserError, match="version 99 of runs, not 1"):
        run_directory.read(tmp_path)
