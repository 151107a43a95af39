"""Errors of storage end as what they are: passing ones are tried again, a full disk and missing rights are one line."""

from __future__ import annotations

import builtins
import errno
import gzip
import io
import re
import resource
import sys

import jax
import numpy as np
import pytest
from etils import epath
from transformers import AutoTokenizer

from mmrlhf_jax import cli, faults, files
from mmrlhf_jax.data.media import read_media, read_video_frames
from mmrlhf_jax.data.sources import read_records
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface import tensors
from mmrlhf_jax.huggingface.load import load_tokenizer
from mmrlhf_jax.huggingface.tensors import StoredTensors
from mmrlhf_jax.sharding.exits import StoppedTogether
from mmrlhf_jax.training.metrics import MetricsLog, read_metrics
from mmrlhf_jax.training.reference import model_fingerprint
from tests import ranked, tiny

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
    ],
)
def test_the_command_line_says_it_in_one_line(error, status, line, monkeypatch, capsys):
    found, said = ended(error, monkeypatch, capsys)
    assert found == status
    assert re.match(f"error: .*{line}", said), said


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def fail():
        raise ValueError("a mistake")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ValueError, match="a mistake"):
        cli.main()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    growing = files.GrowingFile(tmp_path / "log.jsonl", "")
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
    monkeypatch.setattr(cli, "_one_of_several", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: done.append(f"waited {seconds:g}"))
    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises((InterruptedError, StoppedTogether)):
        cli.main()
    waited = [f"waited {cli.COORDINATOR_LINGERS:g}"] if process == 0 else []
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
    monkeypatch.setattr(cli, "_one_of_several", lambda: several)
    monkeypatch.setattr(cli, "COORDINATOR_LINGERS", 0.0)
    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises(InterruptedError if several else SystemExit):
        cli.main()
    assert left == [143] * several


def test_a_command_that_succeeds_ends_in_order(monkeypatch):
    def succeeded():
        raise SystemExit(0)

    monkeypatch.setattr(cli, "app", succeeded)
    monkeypatch.setattr(cli, "_one_of_several", lambda: True)
    monkeypatch.setattr(cli.os, "_exit", lambda status: pytest.fail("it left the others alone"))
    with pytest.raises(SystemExit):
        cli.main()
