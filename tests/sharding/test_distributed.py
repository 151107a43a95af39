"""Joining the other processes: what JAX is told, under schedulers too."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import distributed

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture
def told(monkeypatch):
    """What `jax.distributed.initialize` is called with."""
    found = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: found.update(settings))
    for name in (distributed.COORDINATOR, distributed.PROCESSES, distributed.PROCESS, "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_a_gpu_hosts_one_process_drives_all_its_devices_under_slurm_too(told, monkeypatch):
    """There each task has a number on its host, and JAX would take the one device of that number."""
    monkeypatch.setenv("SLURM_LOCALID", "0")
    distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))
    assert list(told["local_device_ids"]) == list(range(8))


def test_who_names_the_devices_is_followed(told, monkeypatch):
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))
    assert "local_device_ids" not in told


def test_on_tpus_the_devices_are_the_slices_own(told):
    distributed.join(config.load_launch(LAUNCH / "v6e-32x2.yaml"))
    assert "local_device_ids" not in told


def test_half_of_the_variables_is_an_error_that_names_the_missing_one(told, monkeypatch):
    monkeypatch.setenv(distributed.PROCESSES, "2")
    monkeypatch.setenv(distributed.COORDINATOR, "127.0.0.1:1")
    with pytest.raises(UserError, match=f"{distributed.PROCESS} is not"):
        distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))
