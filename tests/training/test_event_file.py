"""TensorBoard's file holds what was logged, and where it cannot be written the run goes on and the user is told, once."""

from __future__ import annotations

import errno
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from mmrlhf_jax.training.event_file import EventFile
from mmrlhf_jax.training.metrics import MetricsLog, read_metrics


def events(directory: Path) -> list:
    """What the files of a directory hold, read from their records (TFRecord: length, checksum, content, checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[12 + length + 4 :]
    return found


def test_figures_and_histograms_come_back_by_step_and_name(tmp_path):
    log = MetricsLog(tmp_path, resume_step=4)
    log.write(5, {"loss": 0.5, "beta": [0.25, 0.75], "beta_edges": [0.0, 1.0, 2.0]})
    log.close()
    version, start, figures = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, 1)
    scalar, histogram = figures.summary.value
    assert (figures.step, scalar.tag, scalar.simple_value) == (5, "loss", 0.5)
    assert (histogram.tag, list(histogram.histo.bucket), list(histogram.histo.bucket_limit)) == ("beta", [0.25, 0.75], [1, 2])
    np.testing.assert_allclose([histogram.histo.sum, histogram.histo.sum_squares], [0.25 * 0.5 + 0.75 * 1.5, 1.75])


@pytest.mark.parametrize("fails_at", ["write", "flush", "close"])
def test_a_file_that_cannot_be_written_is_said_once_and_costs_no_figure(tmp_path, monkeypatch, capfd, fails_at):
    from tensorboardX.record_writer import RecordWriter

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = MetricsLog(tmp_path)
    monkeypatch.setattr(RecordWriter, fails_at, full)
    for step in range(1, 30):  # more than any queue holds
        log.write(step, {"loss": 1.0})
    log.close()
    assert capfd.readouterr().err.count("No space left on device") == 1
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 30))


def test_no_thread_writes_the_file(tmp_path):
    before = threading.active_count()
    EventFile(tmp_path, 1)
    assert threading.active_count() == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path, capfd):
    (tmp_path / "tensorboard").write_text("a file")
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 1.0})
    log.close()
    assert "TensorBoard's file is not written further" in capfd.readouterr().err
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
