"""What happens to pods happens to runs: kills, preemptions, hosts that are gone, other hosts than before."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from mmrlhf_jax.exits import PEER_LOST, SIGNALLED
from tests.sharding import loopback

WAIT = 300.0


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Of the objective that compiles fastest: what is tested here is the same for all."""
    return loopback.write_experiment(tmp_path_factory.mktemp("supervised"), "supervised", steps=8, checkpoint_every=2, keep=3)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """The uninterrupted run on one device."""
    folder = tmp_path_factory.mktemp("whole")
    loopback.train_here(folder, experiment)
    return folder / "run"


def in_folder(settings, folder: Path):
    return settings | {"run": settings["run"] | {"directory": str(folder / "run")}}


def final_arrays(run: Path, step: int) -> list[np.ndarray]:
    loaded = ocp.load_checkpointables(run / "checkpoints" / str(step))
    return [np.asarray(x) for x in jax.tree.leaves({name: loaded[name] for name in ("params", "opt_state")})]


def assert_same_run(run: Path, expected: Path, steps: int):
    assert loopback.losses(run) == loopback.losses(expected)
    for found, wanted in zip(final_arrays(run, steps), final_arrays(expected, steps), strict=True):
        np.testing.assert_array_equal(found, wanted)


def wait_for(condition, process, what: str):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        if process.poll() is not None:
            return
        time.sleep(0.005)


def steps_done(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def kill_at(moment: str, rng: random.Random, folder: Path, process) -> None:
    """SIGKILL at a random moment: after some step, or while a checkpoint is being written."""
    run = folder / "run"
    if moment == "writing":
        before = {path.name for path in (run / "checkpoints").glob("*")}
        new = lambda: {path.name for path in (run / "checkpoints").glob("*")} - before
        wait_for(new, process, "no checkpoint was begun")
        time.sleep(rng.random() * 0.05)
    else:
        target = steps_done(run) + rng.randint(1, 3)
        wait_for(lambda: steps_done(run) >= target, process, "no step was made")
        time.sleep(rng.random() * 0.2)
    process.kill()
    process.wait()


def survive(settings, expected: Path, folder: Path, kills: int, seed: int, steps: int):
    rng = random.Random(seed)
    for number in range(kills):
        (process,) = loopback.start(folder, in_folder(settings, folder), {"fsdp": 1}, 1, 1)
        kill_at(("writing", "step")[number % 2], rng, folder, process)
    loopback.train_here(folder, settings)
    assert_same_run(folder / "run", expected, steps)


@pytest.mark.long
def test_a_run_that_is_killed_ends_bit_for_bit_like_one_that_is_not(experiment, whole, tmp_path):
    survive(experiment, whole, tmp_path, kills=2, seed=0, steps=8)


@pytest.mark.slow
def test_twenty_kills(experiment, tmp_path):
    longer = experiment | {"run": experiment["run"] | {"steps": 60}}
    loopback.train(tmp_path / "whole", longer, {"fsdp": 1}, 1, 1)
    survive(longer, tmp_path / "whole" / "run", tmp_path / "killed", kills=20, seed=1, steps=60)


@pytest.mark.long
def test_a_preempted_process_takes_the_others_along_and_fewer_hosts_go_on(experiment, whole, tmp_path):
    """SIGTERM to one of two: both stop behind the same step, with a checkpoint; one process then finishes the same run."""
    longer = in_folder(experiment, tmp_path)
    processes = loopback.start(tmp_path, longer, {"fsdp": 2}, 2, 1)
    wait_for(lambda: steps_done(tmp_path / "run") >= 2, processes[0], "no step was made")
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=WAIT) for process in processes] == [SIGNALLED] * 2, loopback.output(tmp_path)
    assert "continues from there" in loopback.output(tmp_path)
    continued = loopback.train_here(tmp_path, experiment)
    np.testing.assert_allclose(list(continued.values()), list(loopback.losses(whole).values()), rtol=1e-5)


@pytest.mark.slow
def test_the_others_name_a_process_that_is_gone_and_end_within_a_minute(experiment, tmp_path):
    longer = in_folder(experiment | {"run": experiment["run"] | {"steps": 5000, "checkpoint_every": 5000}}, tmp_path)
    processes = loopback.start(tmp_path, longer, {"fsdp": 2}, 2, 1, heartbeat=10)
    wait_for(lambda: steps_done(tmp_path / "run") >= 2, processes[0], "no step was made")
    processes[1].kill()
    killed = time.monotonic()
    assert processes[0].wait(timeout=WAIT) == PEER_LOST, loopback.output(tmp_path)
    assert time.monotonic() - killed < 60
    assert "process 1 on" in (tmp_path / "process-0.log").read_text()


@pytest.mark.slow
def test_four_hosts_go_on_as_two(experiment, whole, tmp_path):
    first = in_folder(experiment | {"run": experiment["run"] | {"steps": 8}}, tmp_path)
    processes = loopback.start(tmp_path, first, {"data": 2, "fsdp": 4}, 4, 2)
    wait_for(lambda: steps_done(tmp_path / "run") >= 3, processes[0], "no step was made")
    processes[3].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=WAIT) for process in processes] == [SIGNALLED] * 4, loopback.output(tmp_path)
    continued = loopback.train(tmp_path, experiment, {"data": 2, "fsdp": 4}, 2, 4)
    np.testing.assert_allclose(list(continued.values()), list(loopback.losses(whole).values()), rtol=1e-5)
