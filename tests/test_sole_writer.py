"""What holds for everything that one process makes: an export, a built data set, a file of scores."""

from __future__ import annotations

import os
import sys

import pytest
from etils import epath

from mmrlhf_jax import cli, ownership
from mmrlhf_jax.data import builder
from mmrlhf_jax.data.mixture import open_examples
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import hidden_beside
from mmrlhf_jax.huggingface.new_directory import new_directory, reserved
from mmrlhf_jax.inference import engine, jobs
from mmrlhf_jax.training import trained
from tests.data import groups


def export(tmp_path, out, fail: bool) -> None:
    with new_directory(out) as made:
        (made.files / "config.json").write_text("{}")
        if fail:
            raise UserError("the reason")


def build(tmp_path, out, fail: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if fail:
            patch.setattr(builder, "write_shards", lambda *_: (_ for _ in ()).throw(UserError("the reason")))
        builder.build(groups.write(tmp_path / "source", 2), out, video_frames=3, jobs=1)


def score(tmp_path, out, fail: bool) -> None:
    def work(indices):
        if fail:
            raise UserError("the reason")
        return ((index, {"id": index}) for index in indices)

    jobs.run_job(open_examples(groups.write(tmp_path / "source", 2), video_frames=3), out, "job", work)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("make", [export, build, score])
def test_the_lock_is_the_last_that_goes(tmp_path, monkeypatch, make, fail):
    """Before, another process would begin in a folder whose rest is being removed."""
    seen, give_back = [], ownership.Ownership._give_back

    def watched(self):
        seen.append([name for name in os.listdir(self.path.parent) if not name.startswith(".lock.")])
        assert self._is_mine(self.path.read_text())
        give_back(self)

    monkeypatch.setattr(ownership.Ownership, "_give_back", watched)
    if fail:
        with pytest.raises(UserError, match="the reason"):
            make(tmp_path, tmp_path / "out", fail)
    else:
        make(tmp_path, tmp_path / "out", fail)
    assert seen == [["lock"]]
    assert {path.name for path in tmp_path.iterdir()} - {"source"} == (set() if fail else {"out"})


@pytest.mark.parametrize("make", [export, build, score])
def test_work_that_is_done_stays_done_where_cleaning_up_fails(tmp_path, monkeypatch, capsys, make):
    class HttpError(Exception):
        """No OSError."""

    (made := epath.Path(tmp_path / "probe")).mkdir()
    remove = type(made).rmtree

    def rmtree(self, missing_ok=False):
        if self.name.startswith("partial-") or self.name == "notes" or self.name.endswith(".parts"):
            raise HttpError("503 from the store")
        remove(self, missing_ok=missing_ok)

    monkeypatch.setattr(type(made), "rmtree", rmtree)
    if make is export:
        with new_directory(tmp_path / "out") as place:
            (place.files / "config.json").write_text("{}")
            (tmp_path / ".out.exporting/partial-stale").mkdir()
    else:
        make(tmp_path, tmp_path / "out", False)
    assert "503 from the store" in capsys.readouterr().err
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("gs://bucket", "gs://bucket/.bucket.x"),
        ("s3://bucket/", "s3://bucket/.bucket.x"),
        ("gs://bucket/out", "gs://bucket/.out.x"),
        ("gs://bucket/a/out/", "gs://bucket/a/.out.x"),
        ("/a/out", "/a/.out.x"),
    ],
)
def test_what_becomes_a_whole_bucket_is_made_in_it_and_not_in_another_one(path, hidden):
    assert str(hidden_beside(path, "x")) == hidden


def refused(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["mmrlhf", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


COMMANDS = {
    "export": lambda source, out: ("export", source, out),
    "logprobs": lambda source, out: ("logprobs", "--model", source, "--data", source, "--out", out),
    "score": lambda source, out: ("score", "--model", source, "--data", source, "--out", out),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("wrong", ["another is at work", "no directory can be made there", "it exists"])
def test_an_out_that_cannot_be_written_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, command, wrong):
    def load(*_, **__):
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(trained, "load_trained", load)
    monkeypatch.setattr(trained, "export_checkpoint", load)
    monkeypatch.setattr(engine.Engine, "load", load)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / trained.CONFIG_FILE).touch()
    out = tmp_path / "out"
    call = COMMANDS[command](tmp_path / "source", out)
    if wrong == "another is at work":
        with (reserved if command == "export" else jobs.reserved)(out):
            refused(monkeypatch, *call)
        said = "is exporting to it" if command == "export" else "is writing it"
    elif wrong == "it exists":
        out.mkdir()
        (out / "file").touch()
        refused(monkeypatch, *call)
        said = "exists"
    else:
        (tmp_path / "file").touch()
        out = tmp_path / "file" / "out"
        refused(monkeypatch, *COMMANDS[command](tmp_path / "source", out))
        said = "cannot be written"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert f"{out}: " in line and said in line
