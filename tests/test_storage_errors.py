"""Errors of storage end as what they are: passing ones are tried again, a full disk and missing rights are one line."""

from __future__ import annotations

import builtins
import errno
import gzip
import io
import re
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from transformers import AutoTokenizer

from mmrlhf_jax import cli, exits, faults, files, growing_file
from mmrlhf_jax.data.media import read_media, read_video_frames
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import StoppedTogether
from mmrlhf_jax.huggingface import tensors
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.huggingface.tensors import StoredTensors
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.sharding import agreement
from mmrlhf_jax.training import directory
from mmrlhf_jax.training.metrics import MetricsLog, read_metrics
from tests import ranked, tiny
from tests.test_storage_faults import named, raised_from

PASSING = [OSError(503, "Service Unavailable"), TimeoutError("timed out"), OSError(errno.ECONNRESET, "Connection reset")]


@pytest.fixture
def busy(monkeypatch):
    """A storage whose every file answers only at the third try; gives the tries by name."""
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.0)
    real, tries, busy_below = builtins.open, {}, ["/nowhere"]

    def open_(file, mode="r", *args, **kwargs):
        name = str(file)
        if "r" in mode and name.startswith(busy_below[0]):
            tries[name] = tries.get(name, 0) + 1
            if tries[name] < 3:
                raise PASSING[len(tries) % len(PASSING)]
        return real(file, mode, *args, **kwargs)

    def below(folder):
        busy_below[0] = str(folder)
        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(io, "open", open_)
        return tries

    return below


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")])
def test_weights_and_tokenizers_are_read_from_a_storage_that_is_busy(tmp_path, monkeypatch, error):
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.0)
    model = tiny.checkpoint(tmp_path / "model")

    def busy(real, tries: int):
        def act(*arguments, **options):
            nonlocal tries
            tries -= 1
            if tries >= 0:
                raise error
            return real(*arguments, **options)

        return act

    whole = model_fingerprint(model)
    monkeypatch.setattr(tensors, "safe_open", busy(tensors.safe_open, 2))
    assert StoredTensors(model).shapes and model_fingerprint(model) == whole
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", busy(AutoTokenizer.from_pretrained, 2))
    assert load_tokenizer(model).eos_token_id is not None
    monkeypatch.setattr(tensors, "safe_open", busy(tensors.safe_open, 1000))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", busy(AutoTokenizer.from_pretrained, 1000))
    for act in (StoredTensors, model_fingerprint, load_tokenizer):
        with pytest.raises(faults.Unavailable):
            act(model)


def test_weights_and_tokenizers_that_memory_does_not_hold_are_not_called_damaged(tmp_path, monkeypatch):
    model = tiny.checkpoint(tmp_path / "model")

    def full(*arguments, **options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(tensors, "safe_open", full)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", full)
    for act in (StoredTensors, load_tokenizer):
        with pytest.raises(OSError) as raised:
            act(model)
        assert faults.in_words(raised.value).startswith("out of memory")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_sources_and_pictures_are_read_from_a_storage_that_is_busy(tmp_path, busy, suffix):
    path = ranked.write(tmp_path, [(1, 2)], [[(30, 30)]])
    if suffix:
        packed = path.with_name(path.name + suffix)
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    expected, picture = read_records(path), (tmp_path / "0_0.png").read_bytes()
    tries = busy(tmp_path)
    assert read_records(path) == expected
    assert read_media(epath.Path(tmp_path / "0_0.png"), "here") == picture
    assert set(tries.values()) == {3}


def test_a_folder_of_frames_is_read_from_a_storage_that_is_busy(tmp_path, busy):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(ranked.picture((8, 8), number))
    expected = read_video_frames(str(tmp_path), 3)
    busy(tmp_path)
    assert read_video_frames(str(tmp_path), 3) == expected


def test_metrics_and_caches_are_read_from_a_storage_that_is_busy(tmp_path, busy):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 0.5})
    log.close()
    files.write_arrays(tmp_path / "cache.npz", values=np.arange(3))
    busy(tmp_path)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert files.read_arrays(tmp_path / "cache.npz")["values"].tolist() == [0, 1, 2]


def test_a_picture_of_a_storage_that_never_answers_is_no_fault_of_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.0)
    path = epath.Path(tmp_path / "a.png")

    def away():
        raise OSError(503, "Service Unavailable")

    monkeypatch.setattr(type(path), "read_bytes", lambda self: away())
    with pytest.raises(faults.Unavailable, match=r"record 'r'.*a\.png.*6 times"):
        read_media(path, "record 'r'")


def test_a_picture_that_is_not_there_is_not_asked_for_again(tmp_path, capfd):
    with pytest.raises(UserError, match="cannot be read"):
        read_media(epath.Path(tmp_path / "gone.png"), "record 'r'")
    assert "trying again" not in capfd.readouterr().err


def ended(error: Exception, monkeypatch, capsys) -> tuple[int, str]:
    """Status and last line of the command line, where a command fails with this error."""

    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/disk/metrics.jsonl"), 2, r"/disk/metrics\.jsonl: no room to write"),
        (OSError(errno.EFBIG, "File too large", "/disk/x"), 2, "/disk/x: no room to write"),
        (ValueError("RESOURCE_EXHAUSTED: error writing: No space left on device"), 2, "no room to write"),
        (PermissionError(errno.EACCES, "Permission denied", "/disk/x"), 2, r"/disk/x: access denied \(Permission denied\)"),
        (MemoryError("Unable to allocate 3 GiB"), 2, "out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"), 2, "out of memory"),
        (faults.Unavailable("gs://b/x: 503, 6 times"), 75, "when the storage answers again"),
        (OSError(errno.EIO, "Input/output error", "/nfs/x"), 75, "Input/output error: '/nfs/x'; the same command goes on"),
        (OSError(503, "Service Unavailable"), 75, "Service Unavailable.*when the storage answers again"),
        (TimeoutError("timed out"), 75, "timed out; the same command goes on"),
        (named("ServiceUnavailable", "try later"), 75, "try later; the same command goes on"),
        (named("HttpError", "backend error", code=500), 75, "backend error; the same command goes on"),
        (raised_from(RuntimeError("no index"), OSError(errno.ESTALE, "Stale file handle")), 75, "no index; the same command"),
        (ExceptionGroup("reads", [OSError(errno.EIO, "one"), TimeoutError("two")]), 75, "reads .*; the same command"),
    ],
)
def test_the_command_line_says_it_in_one_line(error, status, line, monkeypatch, capsys):
    found, said = ended(error, monkeypatch, capsys)
    assert found == status
    assert re.match(f"error: .*{line}", said), said


def while_handling(error: Exception, handled: Exception) -> Exception:
    error.__context__ = handled
    return error


MISTAKES = [
    ValueError("a mistake"),
    subprocess.TimeoutExpired("a mistake", 5),  # reads "timed out after 5 seconds"
    RuntimeError("UNAVAILABLE: a mistake"),
    while_handling(KeyError("a mistake"), OSError(errno.EIO, "Input/output error")),
    ExceptionGroup("a mistake", [KeyError("step"), OSError(errno.EIO, "Input/output error")]),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=repr)
def test_an_error_of_the_program_keeps_its_traceback(monkeypatch, mistake):
    def fail():
        raise mistake

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(type(mistake), match="a mistake"):
        cli.main()


def test_an_error_that_is_stated_to_be_its_own_cause_is_looked_at_once():
    error = RuntimeError("timed out")
    error.__cause__ = error
    assert not faults.away(error)


def failing_times(monkeypatch, owner, name: str, times: int, error: Exception) -> list[int]:
    """`owner.name` fails so many times; what is left of them."""
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.0)
    real, left = getattr(owner, name), [times]

    def act(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, act)
    return left


POSIX = type(epath.Path("/"))


@pytest.mark.parametrize("error", PASSING, ids=str)
@pytest.mark.parametrize("name", ["write_bytes", "replace", "mkdir"])
def test_a_file_is_written_where_the_storage_is_busy_and_no_part_of_a_try_stays(tmp_path, monkeypatch, name, error):
    (tmp_path / "file").write_text("before")
    failing_times(monkeypatch, POSIX, name, 2, error)
    files.write_json_lines(tmp_path / "file", [{"a": 1}])
    assert (tmp_path / "file").read_text() == '{"a": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_of_a_storage_that_never_answers_is_not_written_and_was_tried_as_often_as_any(tmp_path, monkeypatch):
    left = failing_times(monkeypatch, POSIX, "replace", 100, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(faults.Unavailable, match=rf"Input/output error.*, {faults.TRIES} times"):
        faults.retried(lambda: files.write_atomically(tmp_path / "file", b"x"), "whoever calls it")
    assert left == [100 - faults.TRIES]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", [0, 3])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle")])
def test_a_line_is_in_a_growing_file_once_whatever_part_of_it_a_try_that_failed_has_written(
    tmp_path, monkeypatch, error, written
):
    monkeypatch.setattr(faults, "FIRST_DELAY", 0.0)
    growing = growing_file.GrowingFile(tmp_path / "log", "kept\n")
    growing.write("first\n")

    class Stale:
        """A handle that takes a part of what it is given, and nothing more."""

        def __init__(self, file):
            self._file = file

        def write(self, content):
            self._file.write(content[:written])
            raise error

        def close(self):
            self._file.close()
            raise error

    growing._file = Stale(growing._file)
    growing.write("second\n")
    growing.write("third\n")
    growing.close()
    assert (tmp_path / "log").read_text() == "kept\nfirst\nsecond\nthird\n"


def test_a_short_write_is_gone_on_with(tmp_path):
    growing = growing_file.GrowingFile(tmp_path / "log", "")

    class Slow:
        def __init__(self, file):
            self._file = file

        def write(self, content):
            return self._file.write(content[:2])

        def close(self):
            self._file.close()

    growing._file = Slow(growing._file)
    growing.write("a line of some length\n")
    growing.close()
    assert (tmp_path / "log").read_text() == "a line of some length\n"


@pytest.mark.parametrize("error", PASSING, ids=str)
@pytest.mark.parametrize("name", ["exists", "rmtree", "unlink", "iterdir"])
def test_a_directory_is_cleared_where_the_storage_is_busy(tmp_path, monkeypatch, name, error):
    run = tmp_path / "run"
    (run / "checkpoints" / "3").mkdir(parents=True)
    for file in ("metrics.jsonl", "bad_batch_step_2.npz", "config.yaml"):
        (run / file).write_text("x")
    left = failing_times(monkeypatch, POSIX, name, 3, error)
    directory.clear(epath.Path(run))
    monkeypatch.undo()
    assert left == [0] and [path.name for path in run.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("error", [*PASSING, RuntimeError("a defect")], ids=str)
def test_the_other_processes_of_one_whose_storage_is_away_end_as_that_one_does(error):
    kind = RuntimeError if isinstance(error, RuntimeError) else faults.Unavailable
    with pytest.raises(kind, match=re.escape(str(error))):
        agreement.fail_together(None, [agreement.described(error), None])


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    growing = growing_file.GrowingFile(tmp_path / "log.jsonl", "")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as whole:
            files.write_atomically(tmp_path / "page.html", b"x" * 200)
        with pytest.raises(OSError, match="too large") as line:
            growing.write("x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert whole.value.filename == str(tmp_path / "page.html")
    assert line.value.filename == str(tmp_path / "log.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(
    "ends", [StoppedTogether(143), SystemExit(143), UserError("one line"), faults.Unavailable("away"), RuntimeError("a defect")]
)
def test_the_coordinator_leaves_last_and_where_all_stop_in_order(monkeypatch, process, ends):
    """JAX aborts the other processes when the first one is gone, whatever they were about to say."""
    done: list[str] = []

    def stopped():
        raise ends

    def leave(status):
        done.append("left")
        raise InterruptedError

    monkeypatch.setattr(cli, "app", stopped)
    monkeypatch.setattr(exits, "one_of_several", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(exits.time, "sleep", lambda seconds: done.append(f"waited {seconds:g}"))
    monkeypatch.setattr(exits.os, "_exit", leave)
    with pytest.raises((InterruptedError, StoppedTogether)):
        cli.main()
    waited = [f"waited {exits.COORDINATOR_LINGERS:g}"] if process == 0 else []
    assert done == ([] if isinstance(ends, StoppedTogether) else [*waited, "left"])


@pytest.mark.parametrize("several", [False, True])
def test_a_process_that_ends_by_a_signal_alone_does_not_wait_for_the_others(monkeypatch, several):
    """JAX's orderly end waits for all processes, and takes this one along with a trace of its own when they find it gone."""
    left: list[int] = []

    def leave(status):
        left.append(status)
        raise InterruptedError

    def stopped():
        raise SystemExit(143)

    monkeypatch.setattr(cli, "app", stopped)
    monkeypatch.setattr(exits, "one_of_several", lambda: several)
    monkeypatch.setattr(exits, "COORDINATOR_LINGERS", 0.0)
    monkeypatch.setattr(exits.os, "_exit", leave)
    with pytest.raises(InterruptedError if several else SystemExit):
        cli.main()
    assert left == [143] * several


def test_a_command_that_succeeds_ends_in_order(monkeypatch):
    def succeeded():
        raise SystemExit(0)

    monkeypatch.setattr(cli, "app", succeeded)
    monkeypatch.setattr(exits, "one_of_several", lambda: True)
    monkeypatch.setattr(exits.os, "_exit", lambda status: pytest.fail("it left the others alone"))
    with pytest.raises(SystemExit):
        cli.main()
