"""Several processes as one program: the environment a launch file asks for, and joining the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.accelerators import accelerator

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
            environment.setdefault(name, value)


def _starts(name: str, pattern: str) -> bool:
    return pattern.endswith("*") and name.startswith(pattern[:-1])


def join(launch: config.Launch) -> None:
    """Become one of the processes of this launch. Without `distributed` in it this process is all there is.

    Who the others are comes from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` where they are set, else
    from the scheduler (TPU pods, GKE, SLURM, MPI). UserError where they do not all come in time.
    """
    if launch.distributed is None:
        return
    import jax

    settings = launch.distributed
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **dict(_explicit()),
            **_devices(launch),
            initialization_timeout=settings.initialization_timeout,
            # JAX would abort without a word; `training.peers` says which process is gone before that.
            heartbeat_timeout_seconds=3 * settings.heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of this launch did not come together within {settings.initialization_timeout} s ({reason});"
            f" look at the other hosts' logs, or raise distributed.initialization_timeout"
        ) from None
    say(f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of {jax.device_count()} devices")


def _devices(launch: config.Launch) -> dict[str, range]:
    """On GPU hosts one process drives all devices; under a scheduler that numbers its tasks JAX would take one for each."""
    if launch.accelerator is None or accelerator(launch.accelerator).is_tpu or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return {}
    return {"local_device_ids": range(accelerator(launch.accelerator).chips_per_host)}


def _explicit() -> Iterator[tuple[str, str | int]]:
    if PROCESSES in os.environ:
        missing = [name for name in (COORDINATOR, PROCESS) if name not in os.environ]
        if missing:
            raise UserError(f"{PROCESSES} is set but {missing[0]} is not; set all three, or none")
        yield "coordinator_address", os.environ[COORDINATOR]
        yield "num_processes", int(os.environ[PROCESSES])
        yield "process_id", int(os.environ[PROCESS])
