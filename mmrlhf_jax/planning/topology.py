"""Device descriptions for ahead-of-time compilation: the devices that a launch file names, on any machine with libtpu."""

from __future__ import annotations

import os

import jax

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import CHIPS, Accelerator, Chip, accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line

# Settings by which libtpu provides only its compiler: it looks for no chip, and several processes may load it.
_COMPILE_ONLY = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
_COMPILE_ONLY |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_MIN_LOG_LEVEL": "3"}


def planned_devices(launch: config.Launch) -> list:
    """Devices to compile for: those of a TPU topology, or for GPUs as many CPU devices (the partitioned program is the same).

    Without an accelerator in the launch file, the local devices. UserError if libtpu is missing, or if this process has too few
    CPU devices.
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
    """The chip to plan for; a v5e for a launch file that names none."""
    return CHIPS["v5e"] if launch.accelerator is None else accelerator(launch.accelerator).chip


def _devices(found: Accelerator, slices: int) -> list:
    return _tpu_devices(found, slices) if found.is_tpu else _stand_ins(found.chips * slices)


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
