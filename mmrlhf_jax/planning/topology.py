"""Device descriptions for ahead-of-time compilation: the devices that a launch file names, on any machine that has libtpu (for
TPUs) or jax's CUDA plugin (for GPUs)."""

from __future__ import annotations

import dataclasses
import os
from importlib import resources

import jax

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import CHIPS, Accelerator, Chip, accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.planning.plugin import check_plugin, plugin_packages
from mmrlhf_jax.sharding.distributed import MEMORY_SHARE

# Settings by which libtpu provides only its compiler: it looks for no chip, and several processes may load it.
_COMPILE_ONLY = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
_COMPILE_ONLY |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_MIN_LOG_LEVEL": "3"}
_DEFAULT_FRACTION = 0.75  # the share of a GPU's memory that jax takes if neither variable says another


def planned_devices(launch: config.Launch) -> list:
    """Devices to compile for: those of a TPU topology, or of hosts with GPUs; without jax's CUDA plugin, as many CPU devices in
    the place of GPUs.

    Without an accelerator in the launch file, the local devices. UserError if libtpu is missing, if the plugin cannot be used,
    or if this process has too few CPU devices.
    """
    if launch.accelerator is None:
        return jax.devices()
    return _devices(accelerator(launch.accelerator), launch.slices)


def host_devices(launch: config.Launch) -> tuple[list, int]:
    """(devices to compile for that are those of one host, the number of hosts).

    They are a topology of their own: libtpu makes no machine code for some of a larger one's devices.
    """
    if launch.accelerator is None:
        return jax.devices(), 1
    found = accelerator(launch.accelerator)
    return _devices(found.one_host, 1), found.hosts * launch.slices


def chip_of(launch: config.Launch) -> Chip:
    """The chip to plan for, with the memory that a process gets of it; a v5e for a launch file that names none.

    UserError as for `memory_share`.
    """
    if launch.accelerator is None:
        return CHIPS["v5e"]
    chip = accelerator(launch.accelerator).chip
    if chip.target is None:
        return chip
    return dataclasses.replace(chip, hbm_bytes=int(chip.hbm_bytes * memory_share(launch)))


def compiles_for_gpus() -> bool:
    """Whether XLA's compiler for GPUs is here; without it, CPU devices stand in for GPUs."""
    return bool(plugin_packages())


def gpu_target(chip: Chip) -> str:
    """The description of a GPU for XLA's compiler, a `GpuTargetConfigProto` as text."""
    return (resources.files("mmrlhf_jax.planning") / "targets" / f"{chip.target}.txt").read_text()


def memory_share(launch: config.Launch) -> float:
    """The share of a GPU's memory that XLA reserves for a process. UserError if the launch file's is no share."""
    name = next((name for name in MEMORY_SHARE if launch.environment.get(name)), None)
    if name is None:
        return _DEFAULT_FRACTION
    value = launch.environment[name]
    try:
        fraction = float(value)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"environment.{name}: {value!r} is no share of the memory; it is above 0 and at most 1")
    return fraction


def _devices(found: Accelerator, slices: int) -> list:
    if found.is_tpu:
        return _tpu_devices(found, slices)
    return _gpu_devices(found, slices) if compiles_for_gpus() else _stand_ins(found.chips * slices)


def _gpu_devices(found: Accelerator, slices: int) -> list:
    from jax.experimental import topologies

    check_plugin()
    try:
        settings = dict(topology=f"1x{found.hosts * slices}x{found.chips_per_host}", target_config=gpu_target(found.chip))
        return list(topologies.get_topology_desc(platform="cuda", topology_name=found.name, **settings).devices)
    except Exception as error:  # the plugin raises various types
        raise UserError(f"{found.name}: cannot compile for GPUs here ({first_line(error)})") from None


def _tpu_devices(found: Accelerator, slices: int) -> list:
    from jax.experimental import topologies

    for name, value in _COMPILE_ONLY.items():
        os.environ.setdefault(name, value)
    settings = dict(chips_per_host_bounds=(2, 2, 1), num_slices=slices)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=found.libtpu, **settings).devices)
    except Exception as error:  # libtpu, or its absence, raises various types
        raise UserError(
            f"{found.name}: cannot compile for TPUs here ({first_line(error)}); pip install libtpu (the extra `plan`)"
        ) from None


def _stand_ins(count: int) -> list:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"{count} CPU devices are needed as stand-ins but {len(devices)} are here; start with `mmrlhf plan`")
    return devices[:count]
