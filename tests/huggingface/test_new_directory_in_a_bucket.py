"""A directory of an object store is filled, and is a model when config.json is there, or nothing of it stays."""

from __future__ import annotations

import socket
import subprocess
import sys

import fsspec
import pytest
from etils import epath

from mmrlhf_jax import ownership
from mmrlhf_jax.data import builder
from mmrlhf_jax.data.built_examples import BuiltExamples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.new_directory import new_directory, refuse_existing, reserved
from tests.data import groups

WRITE = """
import os, sys
from mmrlhf_jax import ownership
ownership.SETTLE_SECONDS = 0.1
from mmrlhf_jax.huggingface.new_directory import new_directory
with new_directory(sys.argv[1]) as made:
    (made.large / "model-00001-of-00002.safetensors").write_text("of the first process")
    (made.files / "config.json").write_text("{}")
    print("holds", flush=True)
    sys.stdin.read()
    if sys.argv[2] == "killed":
        os._exit(9)
    if sys.argv[2] == "killed while it ends":
        from mmrlhf_jax.huggingface import new_directory
        new_directory._move = lambda source, target: target.write_text("first") and os._exit(9)
        (made.files / "a").write_text("a")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "SETTLE_SECONDS", 0.1)


def first(out: epath.Path, ends: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITE, str(out), ends]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds\n"
    return process


def end(process: subprocess.Popen) -> int:
    process.stdin.close()
    process.stdout.close()
    return process.wait(60)


def write(out: epath.Path) -> None:
    refuse_existing(out)
    with new_directory(out) as made:
        (made.large / "model.safetensors").write_text("whole")
        (made.files / "config.json").write_text("{}")


def listing(folder: epath.Path) -> list[str]:
    store, name = fsspec.core.url_to_fs(str(folder))
    return sorted(path.removeprefix(f"{name}/") for path in store.find(name))


def test_a_whole_bucket_is_filled_and_no_other_one_touched(bucket):
    store, _ = fsspec.core.url_to_fs(str(bucket))
    store.mkdir("whole")
    whole = epath.Path("gs://whole")
    with pytest.raises(UserError, match="the reason"), new_directory(whole) as made:
        (made.large / "model.safetensors").write_text("half")
        raise UserError("the reason")
    assert listing(whole) == []
    write(whole)
    assert listing(whole) == ["config.json", "model.safetensors"]
    with pytest.raises(UserError, match="gs://whole: exists and is not empty"):
        write(whole)


@pytest.mark.parametrize("ends", ["done", "killed", "killed while it ends"])
def test_of_two_processes_one_writes_it_and_after_a_kill_the_next_does(bucket, ends):
    out = bucket / ends.replace(" ", "-") / "out"
    process = first(out, ends)
    with pytest.raises(UserError) as refused, reserved(out):
        pass
    assert f"{out}: process {process.pid} on {socket.gethostname()} is exporting to it; wait for it, or end it" in str(
        refused.value
    )
    assert end(process) == (0 if ends == "done" else 9)
    if ends == "done":
        assert listing(out.parent) == ["out/config.json", "out/model-00001-of-00002.safetensors"]
    else:
        assert "out/model-00001-of-00002.safetensors" in listing(out.parent)
        write(out)
        assert listing(out.parent) == ["out/config.json", "out/model.safetensors"]


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer.json", "config.json"])
def test_what_is_not_of_the_killed_export_is_never_removed(bucket, name):
    out = bucket / name.replace(".", "-") / "out"
    assert end(first(out, "killed")) == 9
    (out / name).write_text("another's")
    before = listing(out.parent)
    with pytest.raises(UserError, match="exists and is not empty"):
        write(out)
    assert listing(out.parent) == before and (out / name).read_text() == "another's"


@pytest.mark.parametrize("ends", ["fails", "is done"])
def test_errors_of_the_store_while_cleaning_up_are_said_and_the_next_export_goes_on(bucket, monkeypatch, capsys, ends):
    class HttpError(Exception):
        """No OSError."""

    out, unlink = bucket / ends.replace(" ", "-") / "out", type(bucket).unlink

    def failing(self, missing_ok=False):
        if self.name in ("model.safetensors", "unfinished"):
            raise HttpError("503 from the store")
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "unlink", failing)
        if ends == "is done":
            write(out)
        else:
            with pytest.raises(UserError, match="the true reason"), new_directory(out) as made:
                (made.large / "model.safetensors").write_text("half")
                raise UserError("the true reason")
    assert "503 from the store" in capsys.readouterr().err
    if ends == "is done":
        assert listing(out) == ["config.json", "model.safetensors"]
        with pytest.raises(UserError, match="exists and is not empty"):
            write(out)
    else:
        write(out)
        assert listing(out.parent) == ["out/config.json", "out/model.safetensors"]


def test_a_data_set_is_built_into_a_whole_bucket(bucket, tmp_path):
    store, _ = fsspec.core.url_to_fs(str(bucket))
    store.mkdir("built")
    source = groups.write(tmp_path / "source", 3)
    for _ in range(2):
        builder.build(source, "gs://built", video_frames=3, jobs=1)
    assert len(BuiltExamples("gs://built")) == 3
    assert not [name for name in listing(epath.Path("gs://built")) if name.startswith(".")]
