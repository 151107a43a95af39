"""Compiling for devices that need not be here. What the compiler said is kept on disk: the same program is compiled once.

Nine tenths of a compilation are machine code. All that a plan reads, the scheduled program and its buffers, is
there before: `optimise` stops at that point. Only a whole compilation shows that the code generator refuses nothing.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import write_atomically

# What the compiler writes down before machine code; then, by platform, what it writes behind these.
_OPTIMISED, _BUFFERS = "*after_optimizations.txt", "*after_optimizations-buffer-assignment.txt"
_ASSIGNED = {"tpu": "*_after_buffer_assignment.txt", "cpu": "*after_optimizations-memory-usage-report.txt"}
_FINGERPRINT, _REFUSED = "fingerprint", "refused"  # files of the process that is ended
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$", re.MULTILINE)
# What XLA does to programs for CPUs alone: float32 in the place of bfloat16, which their machine code wants and GPUs' does not.
_FOR_CPUS = "--xla_disable_hlo_passes=all-reduce-promotion,float-normalization-bf16"
POLL_SECONDS = 0.2
# How libtpu says that a program does not fit: with temporaries alone, or with all that is used.
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Beside the program and its devices these decide what comes out of the compiler.
_PACKAGES, _FLAGS = ("jax", "jaxlib", "libtpu"), ("LIBTPU_INIT_ARGS", "XLA_FLAGS")


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
class Program:
    """With `memory` and `text` None it does not fit: `needed` is what the compiler found that it takes."""

    seconds: float  # of compiling
    needed: int
    memory: Memory | None
    text: str | None
    machine_code: bool = True  # False: the compiler was stopped before


def kept_programs() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrlhf_jax" / "programs"


def compile_lowered(lowered: jax.stages.Lowered, arguments, mesh: Mesh) -> Program:
    """A program that exceeds the devices' memory is a result, not an error.

    `arguments` are those that it was lowered for: abstract arrays with shardings.
    """
    path = _path(_fingerprint(lowered, mesh))
    if path.exists():
        return _read(path)
    with tempfile.TemporaryDirectory() as folder:
        program = _compile(lowered, arguments, Path(folder))
    _keep(program, path)
    return program


Lowering = Callable[..., tuple[jax.stages.Lowered, Any, Mesh]]


def optimise(lower: Lowering, *what, platform: Literal["tpu", "cpu"]) -> Program:
    """As `compile_lowered` of `lower(*what)` for devices of that platform, without machine code. "cpu" is for stand-ins: the
    program is not one that a CPU could run.

    A process of its own lowers and compiles, and is ended when the compiler has written down what is read here.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, started, assigned = Path(name), time.monotonic(), _ASSIGNED[platform]
        process = multiprocessing.get_context("spawn").Process(target=_lower_and_compile, args=(lower, what, folder, platform))
        process.start()
        try:
            while process.is_alive() and not any(folder.glob(assigned)):
                process.join(POLL_SECONDS)
        finally:
            process.kill()
            process.join()
        if (folder / _REFUSED).exists():
            raise UserError((folder / _REFUSED).read_text())
        found = (folder / _FINGERPRINT).read_text() if (folder / _FINGERPRINT).exists() else None
        if found is None or not (any(folder.glob(assigned)) or _kept(found)):
            raise UserError("the compiler's process ended without a result; its own messages are above")
        if not _kept(found):
            _keep(_optimised(folder, time.monotonic() - started), _path(found, machine_code=False))
        return _read(_kept(found))


def _lower_and_compile(lower: Lowering, what: tuple, folder: Path, platform: str) -> None:
    """In the process that is ended; what it finishes before, it keeps itself."""
    if platform == "cpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FOR_CPUS}"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        lowered, arguments, mesh = lower(*what)
        found = _fingerprint(lowered, mesh)
        write_atomically(folder / _FINGERPRINT, found.encode())
        if _kept(found) is None:
            _keep(_compile(lowered, arguments, folder), _path(found))
    except UserError as error:
        write_atomically(folder / _REFUSED, str(error).encode())


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _optimised(folder: Path, seconds: float) -> Program:
    memory = assigned_memory(next(folder.glob(_BUFFERS)).read_text())
    return Program(seconds, memory.peak, memory, _text(folder), machine_code=False)


def assigned_memory(text: str) -> Memory:
    """Of XLA's buffer assignment: every allocation in the devices' main memory (colour 0, which goes unsaid)."""
    sizes = Counter()
    for size, rest in _ALLOCATION.findall(text):
        if "color" not in rest:
            sizes["parameter" in rest, "maybe-live-out" in rest] += int(size)
    aliased = sizes[True, True]
    return Memory(aliased + sizes[True, False], aliased + sizes[False, True], sizes[False, False], aliased)


def _path(fingerprint: str, machine_code: bool = True) -> Path:
    return kept_programs() / f"{fingerprint}{'' if machine_code else '-optimised'}.json.gz"


def _kept(fingerprint: str) -> Path | None:
    return next((path for path in (_path(fingerprint), _path(fingerprint, False)) if path.exists()), None)


def _keep(program: Program, path: Path) -> None:
    write_atomically(path, gzip.compress(strict_json.dumps(dataclasses.asdict(program)).encode(), 6))


def _read(path: Path) -> Program:
    stored = strict_json.loads(gzip.decompress(path.read_bytes()))
    memory = stored.pop("memory")
    return Program(**stored, memory=memory and Memory(**memory))


def _fingerprint(lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    devices = [f"{d.device_kind} {d.id} {getattr(d, 'coords', '')} {getattr(d, 'slice_index', '')}" for d in mesh.devices.flat]
    around = [importlib.metadata.version(name) for name in _PACKAGES if _installed(name)]
    around += [os.environ.get(name, "") for name in _FLAGS]
    return hashlib.sha256("\n".join([lowered.as_text(), *devices, *around]).encode()).hexdigest()[:32]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _compile(lowered: jax.stages.Lowered, arguments, folder: Path) -> Program:
    started = time.monotonic()
    dump = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True, "xla_dump_hlo_pass_re": ""}
    try:
        executable = lowered.compile(compiler_options=dump)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error), held_bytes(arguments))
        if needed is None:
            raise
        return Program(time.monotonic() - started, needed, None, None)
    seconds = time.monotonic() - started
    stats = executable.memory_analysis()
    memory = Memory(*(int(getattr(stats, f"{name}_size_in_bytes")) for name in ("argument", "output", "temp", "alias")))
    return Program(seconds, memory.peak, memory, _text(folder) or executable.as_text())


def _text(folder: Path) -> str | None:
    """The plug-in's own: newer instructions of libtpu do not always survive the way back through jaxlib."""
    texts = sorted(folder.glob(_OPTIMISED), key=lambda path: path.stat().st_size)
    return texts[-1].read_text() if texts else None


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
