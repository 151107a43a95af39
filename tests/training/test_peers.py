"""Who hangs is named: of processes that wait in a step, the one that is elsewhere is the one that all wait for."""

from __future__ import annotations

import json

import pytest

from mmrlhf_jax.training.goodput import PARTS, Goodput
from mmrlhf_jax.training.peers import COMPILING, LOADING, MEASURING, Peers


@pytest.fixture
def watched(tmp_path):
    return Peers(tmp_path, 0, 3, timeout=30.0, hang=300.0)


def beat(directory, process: int, step: int, doing: str, number: int = 1):
    text = json.dumps({"beat": number, "step": step, "doing": doing, "host": f"host-{process}", "pid": 1})
    (directory / f"process-{process}.json").write_text(text)


def test_the_process_that_is_behind_is_named_with_what_it_does(watched, tmp_path):
    beat(tmp_path, 0, 7, "in step")
    beat(tmp_path, 1, 7, "waiting for data")
    beat(tmp_path, 2, 8, "in step")
    assert watched._behind(0.0) is None
    beat(tmp_path, 1, 7, "waiting for data", number=2)  # alive, but no further
    assert watched._behind(1.0 + 300.0) == "process 1 on host-1 hangs at step 7: waiting for data"


def test_progress_of_any_process_is_no_hang(watched, tmp_path):
    for process in range(3):
        beat(tmp_path, process, 7, "in step")
    watched._behind(0.0)
    beat(tmp_path, 2, 8, "in step")
    assert watched._behind(1.0 + 300.0) is None


def test_compiling_is_no_hang_however_long_it_takes(watched, tmp_path):
    for process in range(3):
        beat(tmp_path, process, 0, COMPILING if process == 2 else "in step")
    watched._behind(0.0)
    assert watched._behind(1000.0) is None


def test_a_process_that_does_not_beat_is_gone_and_one_that_finished_is_not(watched, tmp_path):
    for process, doing in enumerate(("in step", "in step", "finished")):
        beat(tmp_path, process, 7, doing)
    assert watched._gone(0.0) is None
    assert watched._gone(29.0) is None
    assert watched._gone(31.0) == "process 1 on host-1 is gone (silent for 31 s, last at step 7)"


def test_a_beat_that_cannot_be_written_is_said_and_the_next_one_is_tried(watched, tmp_path, monkeypatch, capsys):
    failing = lambda doing: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with monkeypatch.context() as full:
        full.setattr(watched, "_write", failing)
        watched._beat("in step")
        watched._beat("in step")
    assert capsys.readouterr().err.count("No space left") == 1
    watched._beat("in step")
    assert (tmp_path / "process-0.json").exists()


@pytest.mark.parametrize("doing", [LOADING, MEASURING])
def test_what_has_no_steps_of_its_own_is_no_hang(watched, tmp_path, doing):
    for process in range(3):
        beat(tmp_path, process, 0, doing)
    watched._behind(0.0)
    assert watched._behind(1000.0) is None


def test_time_that_is_not_a_steps_is_counted_by_what_it_went_into(monkeypatch):
    clock = iter([0.0, 10.0, 10.0, 14.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr("mmrlhf_jax.training.goodput.time.monotonic", lambda: next(clock))
    goodput = Goodput()  # 0
    goodput.started()  # 10
    with goodput.part("compile"):  # 10 to 14
        pass
    with goodput.part("checkpoint"):  # 20 to 25
        pass
    figures = goodput.figures()  # 40
    assert figures["goodput/start_seconds"] == 10
    assert (figures["goodput/compile_seconds"], figures["goodput/checkpoint_seconds"]) == (4, 5)
    assert figures["goodput/productive"] == (40 - 19) / 40


def test_the_next_attempt_goes_on_counting_and_steps_that_are_done_again_were_not_productive(monkeypatch):
    clock = iter([0.0, 10.0, 50.0])
    monkeypatch.setattr("mmrlhf_jax.training.goodput.time.monotonic", lambda: next(clock))
    parts = {f"goodput/{part}_seconds": 0.0 for part in PARTS} | {"goodput/attempt": 2, "goodput/start_seconds": 20.0}
    kept = parts | {"goodput/seconds": 60.0, "goodput/productive": 40 / 60}
    found = parts | {"goodput/seconds": 100.0, "goodput/productive": 0.8}
    goodput = Goodput()
    goodput.follows(found, kept)
    goodput.started()
    figures = goodput.figures()
    assert (figures["goodput/attempt"], figures["goodput/seconds"]) == (3, 100 + 50)
    assert figures["goodput/start_seconds"] == 20 + 10
    assert figures["goodput/repeated_seconds"] == pytest.approx(80 - 40)
    assert figures["goodput/productive"] == pytest.approx((150 - 30 - 40) / 150)


def test_figures_of_an_earlier_version_are_not_gone_on_from():
    goodput = Goodput()
    goodput.follows({"goodput/productive": 0.5}, {})
    assert goodput.figures()["goodput/attempt"] == 1
