"""Several processes as one program: the environment a launch file asks for, and joining the others."""

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

# What a scheduler that JAX does not know sets for every process; the first is JAX's own variable.
COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def prepare(launch: config.Launch, environment: MutableMapping[str, str] | None = None) -> None:
    """Set the launch file's variables (before jax is imported): what is set already stays, stale ones are cleared.

    Flag lists (`LIBTPU_INIT_ARGS`, `XLA_FLAGS`) are joined: a flag that the user gave comes last and so wins.
    """
    environment = os.environ if environment is None else environment
    for pattern in launch.clear:
        for name in [name for name in environment if name == pattern or _starts(name, pattern)]:
            del environment[name]
    for name, value in launch.environment.items():
        if name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
            environment[name] = " ".join(filter(None, (value, environment.get(name))))
        else:
            environment.setdefault(name, expand_home(value) if value.startswith("~/") else value)  # as in a shell


def _starts(name: str, pattern: str) -> bool:
    return pattern.endswith("*") and name.startswith(pattern[:-1])


def join(launch: config.Launch, name: str | None = None) -> None:
    """Become one of the processes of this launch, whose file is `name`. Without `distributed` in it this process is all there
    is.

    Who the others are comes from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` where they are set, else
    from the scheduler (TPU pods, GKE, SLURM, MPI). Raises UserError where neither says so or they contradict each other, and
    `meeting.Absent` where not all of them come in time.
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
    if launch.accelerator is not None and place.count != expected:
        raise UserError(
            f"{name}: {launch.accelerator} has {expected} host{'s' * (expected != 1)} with one process each, but {PROCESSES} or"
            f" the scheduler says {place.count}; start one process on every host, or name the launch file of what is there"
        )
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its thread takes SIGTERM for itself whenever it gets to run, and tells nobody who listens here: `training.stop` does that.
    jax.config.update("jax_enable_preemption_service", False)
    if place.count > 1:
        meet(place.address, place.count, place.process, settings.initialization_timeout)
    try:
        jax.distributed.initialize(
            place.address,
            place.count,
            place.process,
            **devices,
            initialization_timeout=settings.initialization_timeout,
            # JAX would abort without a word; `training.peers` says which process is gone before that.
            heartbeat_timeout_seconds=3 * settings.heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this launch did not come together within {settings.initialization_timeout} s"
            f" ({first_line(error)}); look at the other hosts' logs, or raise distributed.initialization_timeout"
        ) from None
    _check_devices(Counter(device.process_index for device in jax.devices()))
    say(f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of {jax.device_count()} devices")


class _Place(NamedTuple):
    address: str  # of process 0, HOST:PORT
    count: int
    process: int


def _explicit() -> _Place | None:
    """What the environment says. UserError where it says half of it, or nonsense."""
    given = {name: os.environ[name] for name in (COORDINATOR, PROCESSES, PROCESS) if os.environ.get(name)}
    if PROCESSES not in given and PROCESS not in given:
        return None  # a scheduler may know the rest
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
    """What JAX finds out about the scheduler that started this process; None where there is none."""
    from jax._src import clusters  # JAX shows nobody what it found, and would wait for the others before it does

    ids = devices.get("local_device_ids")
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get(COORDINATOR), None, None, ids, None, timeout
        )
    except (RuntimeError, ValueError, OSError) as error:  # the first host has no address yet, say
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Absent(
            f"the scheduler does not say where process 0 is ({reason}); see that it was started, or set {COORDINATOR},"
            f" {PROCESSES} and {PROCESS}"
        ) from None
    return None if None in found[:3] else _Place(*found[:3])


def _hosts(launch: config.Launch) -> int:
    """How many processes a launch file is for: one a host; 1 where it does not say."""
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
    """`devices`: how many each process has. All processes see the same, so all of them stop."""
    usual = Counter(devices.values()).most_common(1)[0][0]
    odd = {process: number for process, number in sorted(devices.items()) if number != usual}
    if odd:
        named = ", ".join(f"process {process} has {number} devices" for process, number in odd.items())
        raise UserError(f"{named}, the others have {usual}: a mesh needs the same number in each; look at those hosts")


def _devices(launch: config.Launch) -> dict[str, range]:
    """On GPU hosts one process drives all devices; under a scheduler that numbers its tasks JAX would take one for each."""
    if launch.accelerator is None or accelerator(launch.accelerator).is_tpu or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return {}
    return {"local_device_ids": range(accelerator(launch.accelerator).chips_per_host)}
