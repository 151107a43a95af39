"""Joining the other processes: what JAX is told, under schedulers too."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax._src import clusters

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import ACCELERATORS
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import ABSENT
from mmrlhf_jax.sharding import distributed
from mmrlhf_jax.sharding.meeting import Absent
from tests.sharding.loopback import free_port

LAUNCH = Path(__file__).parents[2] / "launch"


NAMES = (distributed.COORDINATOR, distributed.PROCESSES, distributed.PROCESS)


@pytest.fixture
def told(monkeypatch):
    """What `jax.distributed.initialize` is called with; all the others have come."""
    found = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **settings: found.update(settings, place=place))
    monkeypatch.setattr(distributed, "meet", lambda *arguments: found.update(met=arguments))
    for name in (*NAMES, "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def placed(monkeypatch, told):
    for name, value in zip(NAMES, ("host:1", "4", "2"), strict=True):
        monkeypatch.setenv(name, value)


def test_a_gpu_hosts_one_process_drives_all_its_devices_under_slurm_too(told, placed, monkeypatch):
    """There each task has a number on its host, and JAX would take the one device of that number."""
    monkeypatch.setenv("SLURM_LOCALID", "0")
    distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))
    assert list(told["local_device_ids"]) == list(range(8))


JOINED = """
import time
from mmrlhf_jax import config
from mmrlhf_jax.sharding import distributed
distributed.join(config.Launch(distributed=config.Distributed()))
time.sleep(1)
caught = next(int(line.split()[1], 16) for line in open("/proc/self/status") if line.startswith("SigCgt"))
print("SIGTERM is", "caught" if caught >> (15 - 1) & 1 else "nobody's")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for a process's signal handlers")
@pytest.mark.long
def test_a_signal_to_stop_is_left_to_the_run():
    """JAX has a thread that takes SIGTERM for itself when it gets to it: such a signal would stop nothing."""
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(LAUNCH.parent)}
    own |= dict(zip(NAMES, (f"127.0.0.1:{free_port()}", "1", "0"), strict=True))
    found = subprocess.run([sys.executable, "-c", JOINED], env=os.environ | own, capture_output=True, text=True, timeout=120)
    assert "SIGTERM is nobody's" in found.stdout, found.stderr


def test_who_names_the_devices_is_followed(told, placed, monkeypatch):
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))
    assert "local_device_ids" not in told


def test_on_tpus_the_devices_are_the_slices_own(told, placed, monkeypatch):
    monkeypatch.setenv(distributed.PROCESSES, "16")
    distributed.join(config.load_launch(LAUNCH / "v6e-32x2.yaml"))
    assert "local_device_ids" not in told


def test_half_of_the_variables_is_an_error_that_names_the_missing_one(told, monkeypatch):
    monkeypatch.setenv(distributed.PROCESSES, "2")
    monkeypatch.setenv(distributed.COORDINATOR, "127.0.0.1:1")
    with pytest.raises(UserError, match=f"{distributed.PROCESS} is not"):
        distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))


def test_all_processes_meet_at_the_coordinators_address_before_jax_is_told_of_it(told, placed):
    distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))
    assert told["met"] == ("host:1", 4, 2, 600)
    assert told["place"] == ("host:1", 4, 2)


@pytest.mark.parametrize(("launch", "processes"), [("h100-8x4", 4), ("v6e-32x2", 16), ("v5e-16", 4)])
def test_a_launch_file_of_several_hosts_on_one_machine_says_what_is_missing_and_how_to_start_it(told, launch, processes):
    path = LAUNCH / f"{launch}.yaml"
    with pytest.raises(UserError) as error:
        distributed.join(config.load_launch(path), str(path))
    message = str(error.value)
    assert message.startswith(f"{path}: is for {processes} processes, and nothing says which of them this is: start it on all")
    assert f"JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES={processes} and JAX_PROCESS_ID=0, 1, ..." in message
    assert message.endswith("on this machine alone use --launch launch/local.yaml") and "\n" not in message
    assert not told


@pytest.mark.parametrize("settings", [{"accelerator": "v5e-16"}, {"mesh": {"data": 2, "slices": {"data": 2}}}])
def test_several_hosts_without_a_distributed_section_would_each_train_alone(told, settings):
    with pytest.raises(UserError, match="hosts and has no `distributed:` section"):
        distributed.join(config.Launch.model_validate(settings))


def test_one_host_needs_no_others(told):
    for settings in ({}, {"accelerator": "h100-8"}, {"accelerator": "h200-8"}):
        distributed.join(config.Launch.model_validate(settings))
    assert not told


@pytest.mark.parametrize("given", [{1}, {2}, {0, 1}, {0, 2}, {1, 2}])
def test_any_part_of_the_variables_names_what_is_missing(told, monkeypatch, given):
    for number in given:
        monkeypatch.setenv(NAMES[number], "host:1" if number == 0 else "1")
    with pytest.raises(UserError, match=f"is set but {NAMES[min({0, 1, 2} - given)]} is not; set "):
        distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))


@pytest.mark.parametrize("value", ["two", "-1", "1.5"])
def test_variables_that_are_no_numbers_are_refused(told, placed, monkeypatch, value):
    monkeypatch.setenv(distributed.PROCESS, value)
    with pytest.raises(UserError, match=f"JAX_PROCESS_ID is '{value}'; expected a number"):
        distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))


@pytest.mark.parametrize(("count", "process"), [(4, 4), (1, 1), (0, 0)])
def test_a_process_whose_number_is_beyond_their_count_is_refused(told, placed, monkeypatch, count, process):
    monkeypatch.setenv(distributed.PROCESSES, str(count))
    monkeypatch.setenv(distributed.PROCESS, str(process))
    said = f"JAX_PROCESS_ID is {process} and JAX_NUM_PROCESSES is {count}; processes are numbered"
    with pytest.raises(UserError, match=said):
        distributed.join(config.load_launch(LAUNCH / "h100-8x4.yaml"))
    assert not told


@pytest.mark.parametrize(("launch", "expected"), [("v6e-32x2", "16 hosts"), ("v5e-64", "16 hosts"), ("v5p-128", "16 hosts")])
def test_another_number_of_processes_than_the_accelerator_has_hosts_is_refused(told, placed, launch, expected):
    said = f"has {expected} with one process each, but JAX_NUM_PROCESSES or the scheduler says 4;"
    with pytest.raises(UserError, match=said):
        distributed.join(config.load_launch(LAUNCH / f"{launch}.yaml"))
    assert not told


def test_a_process_with_another_number_of_devices_is_named():
    distributed._check_devices({0: 4, 1: 4, 2: 4})
    with pytest.raises(UserError, match="process 1 has 2 devices, the others have 4"):
        distributed._check_devices({0: 4, 1: 2, 2: 4})


@pytest.mark.parametrize("error", [RuntimeError("Failed to recognize\ncoordinator address host"), OSError("no metadata")])
def test_a_scheduler_that_does_not_know_the_first_host_yet_is_one_line_and_tried_again(told, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params", fail)
    with pytest.raises(Absent, match="does not say where process 0 is") as raised:
        distributed.join(config.load_launch(LAUNCH / "v6e-32x2.yaml"))
    assert "\n" not in str(raised.value) and raised.value.status == ABSENT


def test_what_a_scheduler_says_is_where_the_processes_meet(told, monkeypatch):
    found = lambda *_: ("first:8482", 16, 3, None)
    monkeypatch.setattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params", found)
    distributed.join(config.load_launch(LAUNCH / "v6e-32x2.yaml"))
    assert told["met"] == ("first:8482", 16, 3, 600) and told["place"] == ("first:8482", 16, 3)


# Hosts that work each for itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch", ["v5e-16", "v6e-16", "v5p-32", "h100-8x4"])
def test_hosts_that_work_apart_are_numbered_and_not_connected(told, placed, launch):
    environment = {}
    assert distributed.apart(config.load_launch(LAUNCH / f"{launch}.yaml"), environment=environment) == (2, 4)
    assert not told
    assert ("TPU_PROCESS_BOUNDS" in environment) == launch.startswith("v")


def test_the_chips_of_every_tpu_host_have_bounds():
    hosts = [each for each in ACCELERATORS.values() if each.is_tpu]
    for each in hosts:
        bounds = distributed._host_alone(each.chips_per_host)["TPU_CHIPS_PER_PROCESS_BOUNDS"]
        assert math.prod(map(int, bounds.split(","))) == each.chips_per_host
    assert hosts


@pytest.mark.parametrize("settings", [{}, {"accelerator": "h100-8"}])
def test_one_host_works_apart_without_a_number(told, settings):
    environment = {}
    assert distributed.apart(config.Launch(**settings), environment=environment) == (0, 1)
    assert not told and not environment


@pytest.mark.parametrize("settings", [{"accelerator": "v5e-16"}, {"distributed": {}}])
def test_hosts_that_work_apart_need_numbers(told, settings):
    """Or each would take the whole data set for its own."""
    with pytest.raises(UserError, match=distributed.PROCESSES):
        distributed.apart(config.Launch(**settings))


def test_hosts_that_work_apart_are_as_many_as_the_accelerator_has(told, placed):
    with pytest.raises(UserError, match=r"has 16 hosts with one process each, but .* says 4"):
        distributed.apart(config.load_launch(LAUNCH / "v5e-64.yaml"))
