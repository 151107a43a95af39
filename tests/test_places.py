"""Paths mean the same wherever a run is read from, and what is no place that can be written to is no folder of that name."""

import os
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mmrlhf_jax import config, sections
from mmrlhf_jax.cli import app
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import check_place
from mmrlhf_jax.huggingface.export import export_checkpoint
from mmrlhf_jax.launching.describe import directories
from mmrlhf_jax.training.trained import export_run
from tests import tiny

EXPERIMENT = {
    "model": {"path": "models/base/hf"},
    "data": {
        "path": ["sets/a", {"path": "sets/b.jsonl", "media_root": "media/b"}],
        "media_root": "media",
        "rewards": "rewards.jsonl",
        "held_out": "sets/held_out",
    },
    "objective": {"kind": "preference"},
    "run": {"directory": "runs/one"},
}


def test_every_path_of_an_experiment_is_absolute_in_what_a_run_keeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = sections.validate(config.Experiment, EXPERIMENT, "x")
    kept = config.with_absolute_paths(read).model_dump(mode="json")
    at = lambda path: str(tmp_path / path)
    assert kept["model"]["path"] == at("models/base/hf")
    assert kept["data"]["path"] == [at("sets/a"), {"path": at("sets/b.jsonl"), "media_root": at("media/b")} | REST]
    assert [kept["data"][name] for name in ("media_root", "rewards", "held_out")] == [
        at("media"),
        at("rewards.jsonl"),
        at("sets/held_out"),
    ]
    assert kept["run"]["directory"] == at("runs/one")


REST = {"weight": 1.0, "sampling_strategy": "all"}


@pytest.mark.parametrize("path", ["gs://bucket/x", "hf://datasets/o/n", "/already/absolute"])
def test_what_is_no_path_relative_to_here_stays_as_it_is(path):
    read = sections.validate(config.Experiment, EXPERIMENT | {"data": {"path": path}}, "x")
    assert config.with_absolute_paths(read).data.path == path


def test_a_hub_id_stays_one_unless_a_directory_of_that_name_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = sections.validate(config.Experiment, EXPERIMENT | {"model": {"path": "llava-hf/model-hf"}}, "x")
    assert config.with_absolute_paths(read).model.path == "llava-hf/model-hf"
    Path("llava-hf/model-hf").mkdir(parents=True)
    assert config.with_absolute_paths(read).model.path == str(tmp_path / "llava-hf/model-hf")


def test_a_container_does_not_keep_a_model_whose_relative_path_looks_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = {"data": {"path": "gs://b/d", "rewards": "gs://b/r"}, "run": {"directory": "gs://b/run"}}
    Path("x.yaml").write_text(yaml.safe_dump(EXPERIMENT | place | {"model": {"path": "models/base"}}))
    assert directories("x.yaml", []) == []  # of the hub
    Path("models/base").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model\.path is models/base, which a container does not keep"):
        directories("x.yaml", [])


# Where things are written

WRITERS = {
    "export": ["export", "MODEL", "OUT"],
    "build": ["data", "build", "SOURCE", "OUT"],
    "stats": ["data", "stats", "SOURCE", "--out", "OUT"],
    "show": ["data", "show", "SOURCE", "id", "--out", "OUT"],
    "score": ["score", "--model", "MODEL", "--data", "SOURCE", "--out", "OUT"],
    "logprobs": ["logprobs", "--model", "MODEL", "--data", "SOURCE", "--out", "OUT"],
    "quickstart": ["quickstart", "OUT"],
}


@pytest.mark.parametrize(
    ("out", "complaint"),
    [
        ("hf://models/o/n", "nothing is written to hf://; write to a directory here, then `hf upload`"),
        ("ftp://host/x", "nothing is written to ftp:// (but gs://, s3://, az:// and directories here)"),
        ("gs:/bucket/x", "a place is written gs://"),
    ],
)
@pytest.mark.parametrize("verb", WRITERS)
def test_no_command_takes_a_place_it_cannot_write_to_for_a_folder(tmp_path, monkeypatch, verb, out, complaint):
    monkeypatch.chdir(tmp_path)
    arguments = [out if word == "OUT" else str(tmp_path / word) if word.isupper() else word for word in WRITERS[verb]]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UserError) and complaint in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_kept_where_nothing_can_be_written():
    with pytest.raises(UserError, match=r"run\.directory: hf://x/y: nothing is written to hf://"):
        sections.validate(config.Experiment, EXPERIMENT | {"run": {"directory": "hf://x/y"}}, "x")
    with pytest.raises(UserError, match=r"data\.path.*nothing is read from ftp://"):
        sections.validate(config.Experiment, EXPERIMENT | {"data": {"path": "ftp://x/y"}}, "x")


def test_a_folder_whose_name_looks_like_a_place_is_one_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gs:").mkdir()
    assert check_place("gs:/", writes=True) == "gs:/"
    assert check_place("./hf:/x", writes=True) == "./hf:/x"


# An object store


@pytest.mark.long
def test_an_export_into_a_bucket_is_the_one_that_a_directory_gets(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tiny.checkpoint(tmp_path / "in", dtype=tiny.BFLOAT16)
    export_checkpoint(source, tmp_path / "out", shard_bytes=20_000, card=lambda family: "# card\n")
    count = export_checkpoint(source, str(bucket / "models/out"), shard_bytes=20_000, card=lambda family: "# card\n")
    assert count == sum(value.size for value in load_file(source / "model.safetensors").values())
    there = {path.name: path.read_bytes() for path in (bucket / "models/out").iterdir()}
    assert there == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    with pytest.raises(UserError, match="exists and is not empty"):
        export_run(str(source), str(bucket / "models/out"))
    export_run(str(source), str(bucket / "models/other"))
    assert (bucket / "models/other/config.json").exists()


@pytest.mark.long
def test_an_export_into_a_bucket_that_fails_leaves_nothing(bucket, tmp_path, monkeypatch):
    source = tiny.checkpoint(tmp_path / "in")
    monkeypatch.setattr("mmrlhf_jax.huggingface.model_files._write_processors", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_checkpoint(source, str(bucket / "models/failed"))
    assert not (bucket / "models/failed").exists() or not list((bucket / "models/failed").iterdir())


def test_a_model_in_a_bucket_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"gs://b/model: models are read from a directory of this machine or from the hub"):
        tiny.on_one_device("gs://b/model")
