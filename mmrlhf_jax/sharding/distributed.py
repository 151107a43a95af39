"""Starting one process of a multi-process launch: environment variables from the launch file, then `jax.distributed`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.files import expand_home
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.meeting import Absent, meet

# Variables to set for every process under a scheduler that JAX does not know; JAX itself reads the first one.
COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# The name of one setting and its older name: JAX does not start if both are set.
MEMORY_SHARE = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"


def prepare(launch: config.Launch, environment: MutableMapping[str, str] | None = None) -> None:
    """Set the launch file's environment variables, before jax is imported. Variables that are already set keep their values;
    those that the launch file's `clear` names are removed first.

    Flag lists (`LIBTPU_INIT_ARGS`, `XLA_FLAGS`) are concatenated, the user's flags last, so that they take precedence.
    """
    environment = os.environ if environment is None else environment
    for pattern in launch.clear:
        for name in [name for name in environment if name == pattern or _starts(name, pattern)]:
            del environment[name]
    for name, value in launch.environment.items():
        if name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
            environment[name] = " ".join(filter(None, (value, environment.get(name))))
        elif name not in MEMORY_SHARE or not any(map(environment.get, MEMORY_SHARE)):
            environment.setdefault(name, expand_home(value) if value.startswith("~/") else value)  # as in a shell


def _starts(name: str, pattern: str) -> bool:
    return pattern.endswith("*") and name.startswith(pattern[:-1])


def join(launch: config.Launch, name: str | None = None) -> None:
    """Connect this process to the others of the launch (`jax.distributed.initialize`). `name` is the launch file, for messages.

    Without a `distributed` section there is one process, and nothing is done. Address, number of processes and this process's
    number come from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` if they are set, else from the
    scheduler (TPU pods, GKE, SLURM, MPI). Raises UserError if neither is there or they contradict the launch file, and
    `meeting.Absent` if a process does not come in time.
    """
    name = name or "this launch file"
    expected = _hosts(launch)
    if launch.distributed is None:
        if expected > 1:
            raise UserError(
                f"{name}: is for {expected} hosts and has no `distributed:` section, so that each would train alone; add"
                " `distributed: {}`, or use launch/local.yaml on one machine"
            )
        return
    import jax

    settings, devices = launch.distributed, _devices(launch)
    place = _explicit() or _from_scheduler(devices, settings.initialization_timeout)
    if place is None:
        raise UserError(_how_to_start(name, expected))
    _check_count(launch, name, place.count)
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's preemption service would take SIGTERM over from `training.stop`, which handles it here.
    jax.config.update("jax_enable_preemption_service", False)
    if place.count > 1:
        meet(place.address, place.count, place.process, settings.initialization_timeout)
    _initialize(place, settings, devices)
    _check_devices(Counter(device.process_index for device in jax.devices()))
    say(f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of {jax.device_count()} devices")


# How the chips of a host are connected, by their number.
_CHIP_BOUNDS = {1: "1,1,1", 4: "2,2,1", 8: "2,4,1"}


def _host_alone(chips: int) -> dict[str, str]:
    """Variables by which libtpu takes the chips of one host for a slice of its own, and does not wait for the other hosts."""
    return {
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _CHIP_BOUNDS[chips],
        "CLOUD_TPU_TASK_ID": "0",
    }


def apart(
    launch: config.Launch, name: str | None = None, environment: MutableMapping[str, str] | None = None
) -> tuple[int, int]:
    """(number of this process, number of processes) of a launch whose hosts work each for itself, on its own devices.

    Nothing connects them, so that one can die without the others. The numbers come from where `join` takes them, and UserError
    is raised for the same reasons. For TPU slices, sets the variables by which libtpu uses one host's chips alone; call this
    after `prepare` and before the first use of a device.
    """
    name, expected = name or "this launch file", _hosts(launch)
    if launch.distributed is None and expected == 1:
        return 0, 1
    timeout = (
        config.Distributed().initialization_timeout if launch.distributed is None else launch.distributed.initialization_timeout
    )
    place = _explicit() or _from_scheduler(_devices(launch), timeout)
    if place is None:
        raise UserError(_how_to_start(name, expected))
    _check_count(launch, name, place.count)
    if launch.accelerator is not None and (found := accelerator(launch.accelerator)).is_tpu and expected > 1:
        (os.environ if environment is None else environment).update(_host_alone(found.chips_per_host))
    say(f"process {place.process} of {place.count}, each for itself")
    return place.process, place.count


class _Place(NamedTuple):
    address: str  # of process 0, HOST:PORT
    count: int
    process: int


def _check_count(launch: config.Launch, name: str, count: int) -> None:
    """UserError if there are not as many processes as the launch file's accelerator has hosts."""
    expected = _hosts(launch)
    if launch.accelerator is not None and count != expected:
        raise UserError(
            f"{name}: {launch.accelerator} has {expected} host{'s' * (expected != 1)} with one process each, but {PROCESSES} or"
            f" the scheduler says {count}; start one process on every host, or name the launch file of what is there"
        )


def _initialize(place: _Place, settings: config.Distributed, devices: Mapping[str, range]) -> None:
    """Connect JAX. UserError if the processes do not come together in time."""
    import jax

    try:
        jax.distributed.initialize(
            place.address,
            place.count,
            place.process,
            **devices,
            initialization_timeout=settings.initialization_timeout,
            # JAX aborts the process without naming the lost one; `training.peers` notices first and names it.
            heartbeat_timeout_seconds=3 * settings.heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this launch did not come together within {settings.initialization_timeout} s"
            f" ({first_line(error)}); look at the other hosts' logs, or raise distributed.initialization_timeout"
        ) from None


def _explicit() -> _Place | None:
    """The place that the environment variables give; None if they are not set. UserError if they are incomplete or invalid."""
    given = {name: os.environ[name] for name in (COORDINATOR, PROCESSES, PROCESS) if os.environ.get(name)}
    if PROCESSES not in given and PROCESS not in given:
        return None  # the coordinator's address alone may be set; a scheduler may know the rest
    missing = [name for name in (COORDINATOR, PROCESSES, PROCESS) if name not in given]
    if missing:
        raise UserError(f"{next(reversed(given))} is set but {missing[0]} is not; set {COORDINATOR}, {PROCESSES} and {PROCESS}")
    for name in (PROCESSES, PROCESS):
        if not given[name].isdecimal():
            raise UserError(f"{name} is {given[name]!r}; expected a number")
    count, process = int(given[PROCESSES]), int(given[PROCESS])
    if process >= count:
        raise UserError(f"{PROCESS} is {process} and {PROCESSES} is {count}; processes are numbered from 0 to {PROCESSES} - 1")
    return _Place(given[COORDINATOR], count, process)


def _from_scheduler(devices: dict[str, range], timeout: int) -> _Place | None:
    """The place that JAX detects from the scheduler that started this process; None if there is no scheduler."""
    from jax._src import clusters  # has no public name; `jax.distributed.initialize` would detect it but then block

    ids = devices.get("local_device_ids")
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get(COORDINATOR), None, None, ids, None, timeout
        )
    except (RuntimeError, ValueError, OSError) as error:  # for example, the first host has no address yet
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Absent(
            f"the scheduler does not say where process 0 is ({reason}); see that it was started, or set {COORDINATOR},"
            f" {PROCESSES} and {PROCESS}"
        ) from None
    return None if None in found[:3] else _Place(*found[:3])


def _hosts(launch: config.Launch) -> int:
    """How many processes a launch file is for, one per host; 1 per slice if it names no accelerator."""
    hosts = 1 if launch.accelerator is None else accelerator(launch.accelerator).hosts
    return hosts * launch.slices


def _how_to_start(name: str, expected: int) -> str:
    number = str(expected) if expected > 1 else "several"
    return (
        f"{name}: is for {number} processes, and nothing says which of them this is: start it on all hosts with one of launch/"
        f" (slurm.sh, tpu_queued_resource.sh, tpu_xpk.sh, jobset.sh), or set {COORDINATOR}=HOST:PORT, {PROCESSES}={number} and"
        f" {PROCESS}=0, 1, ... for each process; on this machine alone use --launch launch/local.yaml"
    )


def _check_devices(devices: Mapping[int, int]) -> None:
    """UserError if processes have different numbers of devices. `devices` maps process to number; it is the same in all
    processes, so all of them raise."""
    usual = Counter(devices.values()).most_common(1)[0][0]
    odd = {process: number for process, number in sorted(devices.items()) if number != usual}
    if odd:
        named = ", ".join(f"process {process} has {number} devices" for process, number in odd.items())
        raise UserError(f"{named}, the others have {usual}: a mesh needs the same number in each; look at those hosts")


def _devices(launch: config.Launch) -> dict[str, range]:
    """Arguments by which one process takes all GPUs of its host. Under SLURM and MPI, JAX would by default take one GPU per
    process. Empty for TPUs, or if `JAX_LOCAL_DEVICE_IDS` is set."""
    if launch.accelerator is None or accelerator(launch.accelerator).is_tpu or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return {}
    return {"local_device_ids": range(accelerator(launch.accelerator).chips_per_host)}
