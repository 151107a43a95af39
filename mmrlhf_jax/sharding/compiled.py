"""A program compiled for devices that need not be here, and what its text and the compiler's books say of it."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from pathlib import Path

import jax
from jax.sharding import Mesh

from mmrlhf_jax.sharding.accelerators import GB, Chip, GiB
from mmrlhf_jax.sharding.hlo import flops, parse
from mmrlhf_jax.sharding.roofline import Collective, Roofline, collectives, hbm_bytes

# The plug-in's own text: newer instructions of libtpu do not always survive the way back through jaxlib.
_TEXT = "*after_optimizations.txt"
# How libtpu says that a program does not fit: with temporaries alone, or with all that is used.
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
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


def compile_program(lowered: jax.stages.Lowered, arguments, mesh: Mesh, slices: dict[str, int], chip: Chip) -> Compiled:
    """Compile and read. A program that exceeds the devices' memory is a result, not an error.

    `arguments` are those that it was lowered for: abstract arrays with shardings.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": ""}
        try:
            executable = lowered.compile(compiler_options=dump)
        except jax.errors.JaxRuntimeError as error:
            needed = needed_bytes(str(error), held_bytes(arguments))
            if needed is None:
                raise
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


def needed_bytes(message: str, arguments: int) -> int | None:
    """What a program takes that does not fit, by the compiler's message; None if that says something else."""
    temporaries, used = _TEMPORARIES.search(message), _USED.search(message)
    if temporaries:
        return int(float(temporaries[1]) * _UNITS[temporaries[2]]) + arguments
    return int(float(used[1]) * _UNITS[used[2]]) if used else None


def held_bytes(tree) -> int:
    """Bytes of a tree of abstract arrays on one device."""
    leaves = [x for x in jax.tree.leaves(tree) if getattr(x, "sharding", None) is not None]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def shown_bytes(count: float) -> str:
    return f"{count / GiB:.2f} GiB" if count >= GB / 10 else f"{count / 2**20:.1f} MiB"
