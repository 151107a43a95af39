"""Checkpoints survive what happens to them: a newest one that cannot be read, a disk that is full, another mesh."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding.mesh import make_mesh, replicated
from mmrlhf_jax.training.checkpoint import Checkpoints
from mmrlhf_jax.training.state import TrainState, init_state

IDENTITY = {"data": "d", "seed": 1}
MESH = make_mesh({}, jax.devices()[:1])


def state_at(step: int, size: int = 8) -> TrainState:
    values = jax.device_put(jnp.full(size, float(step)), replicated(MESH))
    state = init_state(nnx.State({"w": nnx.Param(values)}), nnx.State({}), optax.adam(1e-3), MESH)
    return TrainState(state.step + step, state.params, state.frozen, state.opt_state, None)


def save(directory: Path, *steps: int) -> None:
    checkpoints = Checkpoints(directory, keep=3)
    for step in steps:
        checkpoints.save(state_at(step), IDENTITY)
        checkpoints.wait()
    checkpoints.close()


def restored(directory: Path) -> tuple[int, float]:
    checkpoints = Checkpoints(directory, keep=3)
    state = checkpoints.restore(state_at(0), IDENTITY)
    checkpoints.close()
    return int(state.step), float(state.params["w"].get_value()[0])


def damage(checkpoint: Path) -> None:
    """Cut every file of the parameters to half, as a copy that was broken off leaves them."""
    for path in (checkpoint / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_newest_checkpoint_that_cannot_be_read_gives_way_to_the_one_before(tmp_path, capfd):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "3")
    assert restored(tmp_path) == (2, 2.0)
    assert "checkpoint at step 3 cannot be read" in capfd.readouterr().err


def test_an_unreadable_checkpoint_is_written_anew_when_the_run_comes_there_again(tmp_path):
    save(tmp_path, 1, 2)
    damage(tmp_path / "2")
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert int(checkpoints.restore(state_at(0), IDENTITY).step) == 1
    checkpoints.save(state_at(2), IDENTITY)
    checkpoints.wait()
    checkpoints.close()
    assert restored(tmp_path) == (2, 2.0)


def test_a_checkpoint_that_was_never_finished_is_not_taken_for_one(tmp_path):
    save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    assert restored(tmp_path) == (2, 2.0)


def test_where_none_can_be_read_the_user_is_told_what_to_do(tmp_path):
    save(tmp_path, 1)
    damage(tmp_path / "1")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1\] can be read; use --fresh"):
        restored(tmp_path)


def test_another_experiments_checkpoint_is_refused_not_skipped(tmp_path):
    save(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, keep=3)
    with pytest.raises(UserError, match="seed 1, this run has 2"):
        checkpoints.restore(state_at(0), IDENTITY | {"seed": 2})
    checkpoints.close()


FULL = """
import signal, resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.training.checkpoint import Checkpoints
from tests.training.test_checkpoint import IDENTITY, state_at
import numpy as np
checkpoints = Checkpoints(Path({directory!r}), keep=3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))  # a write beyond fails, as on a full disk
state = state_at(9)
state.params["w"].set_value(np.random.default_rng(0).normal(size=1 << 18).astype(np.float32))
try:
    checkpoints.save(state, IDENTITY)
    checkpoints.wait()
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_leaves_the_last_good_checkpoint(tmp_path):
    save(tmp_path, 1, 2)
    code = FULL.format(root=str(Path(__file__).parents[2]), directory=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "no room for a checkpoint" in done.stdout, done.stderr[-2000:]
    assert "the checkpoint at step 2 is complete" in done.stdout
    assert restored(tmp_path) == (2, 2.0)


def test_checkpoints_go_to_a_bucket_and_come_back(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(bucket / "run" / "checkpoints", 1, 2)
    assert restored(bucket / "run" / "checkpoints") == (2, 2.0)
    assert not list(tmp_path.iterdir())  # and not into a folder of the name gs:
