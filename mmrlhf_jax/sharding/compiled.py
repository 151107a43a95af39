"""A program compiled for devices that need not be here, and what its text and the compiler's books say of it."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from pathlib import Path

import jax

from mmrlhf_jax.sharding.accelerators import GB, Chip, GiB
from mmrlhf_jax.sharding.hlo import flops, parse
from mmrlhf_jax.sharding.roofline import Collective, Roofline, collectives, hbm_bytes

# The plug-in's own text: newer instructions of libtpu do not always survive the way back through jaxlib.
_TEXT = "*after_optimizations.txt"
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device. `aliased` outputs live where arguments did."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs + self.temporaries - self.aliased


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program. With `memory` None it does not fit: `needed` is what the compiler found that it takes."""

    seconds: float
    needed: int
    memory: Memory | None
    device_flops: float | None
    collectives: list[Collective]
    roofline: Roofline | None
    executable: jax.stages.Compiled | None = None


def compile_program(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, slices: dict[str, int], chip: Chip) -> Compiled:
    """Compile and read. A program that exceeds the devices' memory is a result, not an error."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": ""}
        try:
            executable = lowered.compile(compiler_options=dump)
        except jax.errors.JaxRuntimeError as error:
            used = _USED.search(str(error))
            if "RESOURCE_EXHAUSTED" not in str(error) or used is None:
                raise
            needed = int(float(used[1]) * _UNITS[used[2]])
            return Compiled(time.monotonic() - started, needed, None, None, [], None)
        seconds = time.monotonic() - started
        texts = sorted(Path(folder).glob(_TEXT), key=lambda path: path.stat().st_size)
        module = parse(texts[-1].read_text() if texts else executable.as_text())
    stats = executable.memory_analysis()
    sizes = (f"{name}_size_in_bytes" for name in ("argument", "output", "temp", "alias"))
    memory = Memory(*(int(getattr(stats, name)) for name in sizes))
    found = collectives(module, dict(mesh.shape), slices, chip)
    device_flops = flops(module)
    roofline = Roofline(
        compute_seconds=device_flops / chip.flops,
        hbm_seconds=hbm_bytes(module) / chip.hbm_bandwidth,
        interconnect_seconds=sum(each.seconds for each in found),
    )
    return Compiled(seconds, memory.peak, memory, device_flops, found, roofline, executable)


def shown_bytes(count: float) -> str:
    return f"{count / GiB:.2f} GiB" if count >= GB / 10 else f"{count / 2**20:.1f} MiB"
