"""What can be rented, as data: chips, memory, peaks and links of every accelerator that a launch file may name.

No jax here: reading a launch file is quick. Peaks and bandwidths are the vendors' data sheets. Memory is what XLA hands out,
which is less than the sheet's figure: of TPUs as libtpu's own out-of-memory messages state it, of GPUs by the sheet.
"""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.errors import UserError

GiB = 2**30
GB = 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. Bandwidths in bytes/s; `links` is all of a chip's fast links together, `network` its share of the host's."""

    kind: str  # the start of jax's `device_kind`
    hbm_bytes: int
    flops: float  # dense bfloat16
    hbm_bandwidth: float
    links: float
    network: float


CHIPS = {
    "v5e": Chip("TPU v5 lite", int(15.75 * GiB), 197e12, 819 * GB, 200 * GB, 3.1 * GB),
    "v5p": Chip("TPU v5", int(95.73 * GiB), 459e12, 2765 * GB, 600 * GB, 6.2 * GB),
    "v6e": Chip("TPU v6 lite", int(31.24 * GiB), 918e12, 1640 * GB, 448 * GB, 6.2 * GB),
    "h100": Chip("NVIDIA H100", 80 * GB, 989e12, 3350 * GB, 450 * GB, 50 * GB),
    "h200": Chip("NVIDIA H200", 141 * GB, 989e12, 4800 * GB, 450 * GB, 50 * GB),
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """`chips` devices on hosts of `chips_per_host`, joined by fast links: one TPU slice, or one GPU host.

    `topology` is the slice's shape, `libtpu` the name that libtpu's ahead-of-time compiler knows it by, `gcloud` the
    accelerator type of queued resources.
    """

    name: str
    chip: Chip
    chips: int
    chips_per_host: int
    topology: str | None = None
    libtpu: str | None = None
    gcloud: str | None = None

    @property
    def is_tpu(self) -> bool:
        return self.topology is not None

    @property
    def hosts(self) -> int:
        return -(-self.chips // self.chips_per_host)


def _slice(name: str, topology: str, *, per_core: int = 1) -> Accelerator:
    """TPU v5p is named by cores (two a chip), the others by chips."""
    generation, size = name.split("-")
    gcloud = {"v5e": f"v5litepod-{size}", "v5p": f"v5p-{size}", "v6e": f"v6e-{size}"}[generation]
    libtpu = f"{'v5' if generation == 'v5p' else generation}:{topology}"
    return Accelerator(name, CHIPS[generation], int(size) // per_core, 4, topology, libtpu, gcloud)


ACCELERATORS = {
    found.name: found
    for found in (
        _slice("v5e-16", "4x4"),
        _slice("v5e-64", "8x8"),
        _slice("v5e-256", "16x16"),
        _slice("v5p-32", "2x2x4", per_core=2),
        _slice("v5p-128", "4x4x4", per_core=2),
        _slice("v6e-16", "4x4"),
        _slice("v6e-32", "4x8"),
        _slice("v6e-256", "16x16"),
        Accelerator("h100-8", CHIPS["h100"], 8, 8),
        Accelerator("h200-8", CHIPS["h200"], 8, 8),
    )
}


def accelerator(name: str) -> Accelerator:
    """UserError where there is no such accelerator."""
    if name not in ACCELERATORS:
        raise UserError(f"accelerator {name!r} is not one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]
