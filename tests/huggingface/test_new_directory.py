"""A directory that is written as a whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from etils import epath

from mmrlhf_jax import ownership, sole_writer, workplace
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.new_directory import _partial, new_directory, refuse_existing, reserved
from mmrlhf_jax.owner import Owner

WAYS = ["takes its place", "mounted", "nothing may be made beside it"]


@pytest.fixture(params=WAYS)
def out(request, tmp_path, monkeypatch):
    """An empty directory, of each kind."""
    made = tmp_path / "out"
    made.mkdir()
    if request.param == "mounted":
        monkeypatch.setattr(workplace.os.path, "ismount", lambda path: os.fspath(path) == os.fspath(made))
        replace = Path.replace

        def busy(self, target):
            if os.fspath(target) == os.fspath(made):
                raise OSError(16, "Device or resource busy")
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", busy)
    elif request.param != "takes its place":
        access = os.access
        denied = lambda path, mode: os.fspath(path) != os.fspath(tmp_path) and access(path, mode)
        monkeypatch.setattr(workplace.os, "access", denied)
        mkdir = Path.mkdir

        def refused(self, *arguments, **options):
            if self.parent == tmp_path and self != made:
                raise PermissionError(13, "Permission denied")
            mkdir(self, *arguments, **options)

        monkeypatch.setattr(Path, "mkdir", refused)
    return made


class HttpError(Exception):
    """As of gcsfs: no OSError."""


class Lost(BaseException):
    """Instead of the end of this process."""


def write(directory: Path, what: str = "{}") -> None:
    for name in ("README.md", "config.json", "model.safetensors", "templates/tools.jinja"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(what)


def listing(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


WRITTEN = ["README.md", "config.json", "model.safetensors", "templates/tools.jinja"]


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


def test_a_directory_of_each_kind_is_filled_or_replaced(out, tmp_path):
    with new_directory(out) as made:
        write(made.files)
        assert "config.json" not in os.listdir(out)
    assert listing(tmp_path) == [f"out/{name}" for name in WRITTEN]
    assert sorted(os.listdir(tmp_path)) == ["out"] and not [name for name in os.listdir(out) if name.startswith(".")]


@pytest.mark.parametrize("moved", [0, 2])
def test_an_export_that_fails_leaves_a_directory_of_each_kind_empty(out, tmp_path, monkeypatch, moved):
    """Before anything is moved, and half-way."""
    replace, done = Path.replace, []

    def failing(self, target):
        if "partial-" in os.fspath(self):
            if len(done) == moved:
                raise OSError(5, "Input/output error")
            done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises((OSError, HttpError)), new_directory(out) as made:
        write(made.files)
        if moved and not workplace.is_filled(out):
            raise HttpError("a directory is moved at once")
    assert os.listdir(out) == [] and os.listdir(tmp_path) == ["out"]


def test_what_is_found_in_a_directory_of_each_kind_is_not_touched(out):
    (out / "model.safetensors").write_text("another's")
    with pytest.raises(UserError, match="nothing is overwritten"), new_directory(out):
        pass
    assert listing(out) == ["model.safetensors"] and (out / "model.safetensors").read_text() == "another's"


def test_of_two_that_see_a_place_differently_one_writes_it(tmp_path, monkeypatch):
    """It is mounted for one of them, and an ordinary directory for the other."""
    (tmp_path / "out").mkdir()
    with pytest.MonkeyPatch.context() as here:
        here.setattr(workplace.os.path, "ismount", lambda path: Path(path).name == "out")
        with reserved(tmp_path / "out"):
            here.undo()
            with pytest.raises(UserError, match="nothing is overwritten"), new_directory(tmp_path / "out"):
                pass


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="no Linux")
def test_mounted_folders_are_known(tmp_path):
    assert workplace._is_mount(epath.Path("/proc")) and not workplace._is_mount(epath.Path(tmp_path))


def test_who_was_suspended_while_another_took_its_place_publishes_nothing(out, tmp_path, monkeypatch):
    """What the other one has written so far is its own, too."""

    def lost(reason):
        raise Lost(reason)

    monkeypatch.setattr(sole_writer, "_lost", lost)
    with pytest.raises(Lost, match="process 4242 on other-host is at work here now"), new_directory(out) as made:
        write(made.files)
        place = workplace.place_of(out, "exporting")[1]
        (place / "lock").write_text(Owner("b" * 32, 4242, "other-host").text())
        with pytest.MonkeyPatch.context() as their:
            their.setattr("uuid.uuid4", lambda: type("Drawn", (), {"hex": "b" * 32}))
            partial = _partial(sole_writer.Held(epath.Path(out), place, None))
        (partial / "model.safetensors").write_text("half of the other's")
    assert [path for path in out.iterdir() if not path.name.startswith(".")] == []
    assert (partial / "model.safetensors").read_text() == "half of the other's"
    assert (place / "lock").exists()


@pytest.mark.parametrize("ends", ["fails", "is done"])
def test_an_error_of_cleaning_up_is_said_and_takes_no_other_ones_place(out, monkeypatch, capsys, ends):
    remove = type(epath.Path(out)).rmtree

    def rmtree(self, missing_ok=False):
        if "partial-" in os.fspath(self):
            raise HttpError("503 from the store")
        return remove(self, missing_ok=missing_ok)

    monkeypatch.setattr(type(epath.Path(out)), "rmtree", rmtree)
    if ends == "fails":
        with pytest.raises(UserError, match="the true reason"), new_directory(out):
            raise UserError("the true reason")
        assert "503 from the store" in capsys.readouterr().err
    else:
        with new_directory(out) as made:
            write(made.files)
            (workplace.place_of(out, "exporting")[1] / "partial-stale").mkdir()
        assert "503 from the store" in capsys.readouterr().err
        assert set(WRITTEN) <= set(listing(out))


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_folders_that_were_made_for_an_export_that_failed_go_again(tmp_path, missing):
    out = tmp_path.joinpath(*"abc"[:missing], "out")
    with pytest.raises(UserError, match="the reason"), new_directory(out):
        raise UserError("the reason")
    assert not os.listdir(tmp_path)
    with pytest.raises(UserError, match="the reason"), new_directory(out):
        out.parent.joinpath("another's").touch()
        raise UserError("the reason")
    assert listing(tmp_path) == [str((out.parent / "another's").relative_to(tmp_path))]


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_is_said_and_leaves_no_lock_behind(tmp_path, monkeypatch, links):
    """An empty lock names nobody: the next export would watch it for a minute."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            if links:
                full()
            else:
                patch.setattr(ownership.os, "link", lambda *_: full() or (_ for _ in ()).throw(PermissionError(1, "no links")))
            with (
                pytest.raises(UserError, match=r"out: cannot be written \(File too large\)"),
                new_directory(tmp_path / "a/out"),
            ):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not os.listdir(tmp_path)
    is_made(tmp_path / "a/out", tmp_path)


def test_a_run_of_several_processes_writes_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="out: one process writes a model"), new_directory(tmp_path / "out"):
        pass
    assert not os.listdir(tmp_path)


HOLD = """
import sys
from mmrlhf_jax.huggingface.new_directory import new_directory
with new_directory(sys.argv[1]) as made:
    (made.files / "config.json").write_text("the first")
    print("holds", flush=True)
    sys.stdin.read()
"""


def test_while_another_process_writes_it_it_is_named_and_never_to_be_removed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "holds\n"
        with pytest.raises(UserError) as refused, reserved(tmp_path / "out"):
            pass
        first.stdin.close()
    said = str(refused.value)
    assert f"out: process {first.pid} on {socket.gethostname()} is exporting to it; wait for it, or end it (it lives; " in said
    assert "remove" not in said
    assert first.returncode == 0 and (tmp_path / "out/config.json").read_text() == "the first"
    assert os.listdir(tmp_path) == ["out"]


def test_one_elsewhere_that_shows_signs_of_life_may_have_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "LOOK_SECONDS", 0.0)
    lock = tmp_path / ".out.exporting/lock"
    lock.parent.mkdir()
    beats = iter(range(100))
    monkeypatch.setattr(
        ownership.owner_file, "read", lambda path: Owner("b" * 32, 4242, "other-host", beat=next(beats)).text()
    )  # another beat whenever it is looked at
    with pytest.raises(UserError, match=rf"process 4242 on other-host .* or remove {lock} if it has ended \(its last sign"):
        sole_writer.sole_writer(epath.Path(lock.parent), tmp_path / "out", "is exporting to it")


def test_after_a_kill_an_export_says_that_it_starts_anew(tmp_path, capsys):
    lock = tmp_path / ".out.exporting/lock"
    lock.parent.mkdir()
    me = Owner.me()
    lock.write_text(Owner("b" * 32, me.pid, me.host, me.place, "12").text())
    is_made(tmp_path / "out", tmp_path)
    assert "is gone; starting anew" in capsys.readouterr().err
