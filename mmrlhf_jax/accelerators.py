"""A table of the accelerators that a launch file may name: chips, memory, peak FLOP/s and bandwidths.

It imports no jax, so that reading a launch file is quick. Peaks and bandwidths are from the vendors' data sheets. For TPUs,
memory is what XLA can allocate, as in libtpu's out-of-memory messages, which is less than on the data sheet; for GPUs it is
CUDA's figure for the whole device, of which a process takes a share (`planning.topology.chip_of`).
"""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.errors import UserError

GiB = 2**30
GB = 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device. Bandwidths are in bytes/s: `links` is the sum over a chip's fast links and both directions (for GPUs NVLink,
    or PCIe if there is none), `network` its share of the host's network.

    `target` names the description of a GPU for XLA's compiler, a file in `planning/targets`; None for TPUs.
    """

    kind: str  # prefix of jax's `device_kind`
    hbm_bytes: int
    flops: float  # dense bfloat16
    hbm_bandwidth: float
    links: float
    network: float
    target: str | None = None


CHIPS = {
    "v5e": Chip("TPU v5 lite", int(15.75 * GiB), 197e12, 819 * GB, 200 * GB, 3.1 * GB),
    "v5p": Chip("TPU v5", int(95.73 * GiB), 459e12, 2765 * GB, 600 * GB, 6.2 * GB),
    "v6e": Chip("TPU v6 lite", int(31.24 * GiB), 918e12, 1640 * GB, 448 * GB, 6.2 * GB),
    "a100": Chip("NVIDIA A100", 85100068864, 312e12, 2039 * GB, 600 * GB, 25 * GB, "a100_80g"),
    "h100": Chip("NVIDIA H100", 84942979072, 989e12, 3350 * GB, 900 * GB, 50 * GB, "h100"),
    "h200": Chip("NVIDIA H200", 151397597184, 989e12, 4800 * GB, 900 * GB, 50 * GB, "h200"),
    "b200": Chip("NVIDIA B200", 191514411008, 2250e12, 8000 * GB, 1800 * GB, 50 * GB, "b200"),
    "l40s": Chip("NVIDIA L40S", 47673507840, 362e12, 864 * GB, 64 * GB, 6.2 * GB, "l40s"),
    "l4": Chip("NVIDIA L4", 23653777408, 121e12, 300 * GB, 64 * GB, 6.2 * GB, "l4"),  # behind L40S, whose name begins like it
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A TPU slice or a GPU host: `chips` devices, connected by fast links, on hosts with `chips_per_host` each.

    `topology` is the slice's shape, `libtpu` its name for libtpu's ahead-of-time compiler, `gcloud` its accelerator type for
    queued resources.
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

    @property
    def one_host(self) -> Accelerator:
        """The chips of one of its hosts: of a TPU slice two by two."""
        if not self.is_tpu:
            return dataclasses.replace(self, chips=self.chips_per_host)
        topology = "2x2x1" if self.topology.count("x") == 2 else "2x2"
        libtpu = f"{self.libtpu.split(':')[0]}:{topology}"
        return dataclasses.replace(self, chips=self.chips_per_host, topology=topology, libtpu=libtpu)


def _slice(name: str, topology: str, *, per_core: int = 1) -> Accelerator:
    """A TPU slice. The number in its name counts cores for v5p (two per chip), chips for the others."""
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
        Accelerator("a100-8", CHIPS["a100"], 8, 8),
        Accelerator("h100-1", CHIPS["h100"], 1, 1),
        Accelerator("h100-8", CHIPS["h100"], 8, 8),
        Accelerator("h200-8", CHIPS["h200"], 8, 8),
        Accelerator("b200-8", CHIPS["b200"], 8, 8),
        Accelerator("l4-1", CHIPS["l4"], 1, 1),
        Accelerator("l40s-8", CHIPS["l40s"], 8, 8),
    )
}


def accelerator(name: str) -> Accelerator:
    """The accelerator of this name. UserError if there is none."""
    if name not in ACCELERATORS:
        raise UserError(f"accelerator {name!r} is not one of {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]
