"""Ahead-of-time compilation for devices that need not be present. Results are cached on disk, keyed by the program.

Nine tenths of the compile time are machine code generation. A plan reads only the scheduled program and its buffer assignment,
which exist before that, so `optimise` stops there. Only a complete compilation shows that code generation succeeds.
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
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.processes import end_with_parent
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import user_cache, write_atomically
from mmrlhf_jax.planning.plugin import plugin_packages

# Dumps that the compiler writes before generating machine code; then, by platform, the dump that it writes after these.
_OPTIMISED, _BUFFERS = "*after_optimizations.txt", "*after_optimizations-buffer-assignment.txt"
_REPORT = "*after_optimizations-memory-usage-report.txt"
_ASSIGNED = {"tpu": "*_after_buffer_assignment.txt", "cpu": _REPORT, "gpu": _REPORT}
# Files by which the compiling process reports to its parent; the last has what XLA's compiler for GPUs writes to stderr.
_FINGERPRINT, _REFUSED, _SAID = "fingerprint", "refused", "said"
_IN_CODE = re.compile(r"\b(constant|thread-local)\b")
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$", re.MULTILINE)
# Disables passes that XLA runs only for CPUs: they replace bfloat16 by float32, which programs for GPUs keep.
_FOR_CPUS = "--xla_disable_hlo_passes=all-reduce-promotion,float-normalization-bf16"
# All matrix products by cuBLAS. Without a GPU to try them on, XLA would choose Triton for most of them; a run chooses for each
# what is faster on its device.
_BY_CUBLAS = "--xla_gpu_enable_triton_gemm=false"
POLL_SECONDS = 0.2
_UNKNOWN_FLAGS = re.compile(r"Unknown flags? in XLA_FLAGS: (.*)")
# libtpu's messages for a program that does not fit; the first gives the size of temporaries, the second the total.
_TEMPORARIES = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")
_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Part of the cache key, because they change the compiler's output.
_PACKAGES, _FLAGS = ("jax", "jaxlib", "libtpu"), ("LIBTPU_INIT_ARGS", "XLA_FLAGS")


@dataclasses.dataclass(frozen=True)
class Target:
    """What `optimise` compiles for. "cpu" means devices that stand in for GPUs, "gpu" those of XLA's own compiler for GPUs.

    `flags` are the run's XLA_FLAGS, `description` is the GPU's (`topology.gpu_target`); both are used for "gpu" only. If
    `triton`, XLA may choose Triton for matrix products, else all are by cuBLAS.
    """

    platform: Literal["tpu", "cpu", "gpu"]
    flags: str = ""
    description: str = ""
    triton: bool = False

    def environment(self) -> dict[str, str]:
        """Variables of the process that compiles. As in a run, this process's flags are behind those of the launch file."""
        before = self.flags.strip() if self.platform == "gpu" else ""
        behind = {"tpu": "", "cpu": _FOR_CPUS, "gpu": "" if self.triton else _BY_CUBLAS}[self.platform]
        flags = " ".join(filter(None, (before, os.environ.get("XLA_FLAGS", ""), behind)))
        return {"XLA_FLAGS": flags} if before or behind else {}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device. `aliased` counts outputs that reuse the buffers of donated arguments."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs + self.temporaries - self.aliased


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiler's result. If `memory` and `text` are None the program does not fit, and `needed` is the compiler's figure."""

    seconds: float  # compile time
    needed: int  # bytes per device
    memory: Memory | None
    text: str | None  # optimised HLO
    machine_code: bool = True  # False: the compiler was stopped before generating machine code


def kept_programs() -> Path:
    return user_cache() / "programs"


def compile_lowered(lowered: jax.stages.Lowered, arguments, mesh: Mesh) -> Program:
    """Compile a program, or read the cached result. A program that exceeds the devices' memory is a result, not an error.

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


def optimise(lower: Lowering, *what, target: Target) -> Program:
    """Like `compile_lowered` of `lower(*what)`, but without machine code. For platform "cpu" the program is not one that a CPU
    could run.

    A child process lowers and compiles; it is killed once the compiler has written the dumps that are read here. UserError if
    lowering raises it, if the compiler does not know one of the flags, or if the child ends without a result.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, started, assigned = Path(name), time.monotonic(), _ASSIGNED[target.platform]
        process = multiprocessing.get_context("spawn").Process(target=_lower_and_compile, args=(lower, what, folder, target))
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
            raise _ended(folder)
        if not _kept(found):
            _keep(_optimised(folder, time.monotonic() - started, target.platform), _path(found, machine_code=False))
        return _read(_kept(found))


def _ended(folder: Path) -> UserError:
    """The error of a child that ended without a result. What it wrote to a file is shown, unless it is about a flag."""
    said = (folder / _SAID).read_text(errors="replace") if (folder / _SAID).exists() else ""
    unknown = _UNKNOWN_FLAGS.search(said)
    if unknown:
        return UserError(f"XLA_FLAGS: this XLA does not know {unknown[1].strip()}; see the launch file's environment")
    print(said, end="", file=sys.stderr, flush=True)
    return UserError("the compiler's process ended without a result; its own messages are above")


def _lower_and_compile(lower: Lowering, what: tuple, folder: Path, target: Target) -> None:
    """Runs in the child process. If it finishes before it is killed, it stores the result itself."""
    os.environ.update(target.environment())
    if target.platform == "gpu":  # it reports the missing GPU, and memory limits that the plan compares itself
        os.dup2(os.open(folder / _SAID, os.O_WRONLY | os.O_CREAT), 2)
    end_with_parent()
    try:
        lowered, arguments, mesh = lower(*what)
        found = _fingerprint(lowered, mesh, target.description)
        write_atomically(folder / _FINGERPRINT, found.encode())
        if _kept(found) is None:
            _keep(_compile(lowered, arguments, folder), _path(found))
    except UserError as error:
        write_atomically(folder / _REFUSED, str(error).encode())


def _optimised(folder: Path, seconds: float, platform: str) -> Program:
    memory = assigned_memory(next(folder.glob(_BUFFERS)).read_text(), constants=platform != "gpu")
    return Program(seconds, memory.peak, memory, _text(folder), machine_code=False)


def assigned_memory(text: str, *, constants: bool = True) -> Memory:
    """Memory from the text of XLA's buffer assignment: all allocations in HBM (colour 0, which the text does not mention).

    Without `constants`, which for GPUs are part of the code, temporaries are those of `memory_analysis()` there."""
    sizes = Counter()
    for size, rest in _ALLOCATION.findall(text):
        if "color" not in rest and (constants or not _IN_CODE.search(rest)):
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


def _fingerprint(lowered: jax.stages.Lowered, mesh: Mesh, description: str = "") -> str:
    devices = [f"{d.device_kind} {d.id} {getattr(d, 'coords', '')} {getattr(d, 'slice_index', '')}" for d in mesh.devices.flat]
    around = [importlib.metadata.version(name) for name in _PACKAGES if _installed(name)]
    around += [importlib.metadata.version(name) for name in plugin_packages()] if description else []
    around += [*(os.environ.get(name, "") for name in _FLAGS), *([description] if description else [])]
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
    """The HLO text that the plug-in dumped. It is preferred to `as_text`, because jaxlib cannot print some of libtpu's newer
    instructions."""
    texts = sorted(folder.glob(_OPTIMISED), key=lambda path: path.stat().st_size)
    return texts[-1].read_text() if texts else None


def needed_bytes(message: str, arguments: int) -> int | None:
    """Bytes that a program needs, from the compiler's out-of-memory message; None if the message is another one. `arguments`
    are the bytes of its arguments."""
    temporaries, used = _TEMPORARIES.search(message), _USED.search(message)
    if temporaries:
        return int(float(temporaries[1]) * _UNITS[temporaries[2]]) + arguments
    return int(float(used[1]) * _UNITS[used[2]]) if used else None


def held_bytes(tree) -> int:
    """Bytes per device of a tree of abstract arrays; arrays without a sharding are left out."""
    leaves = [x for x in jax.tree.leaves(tree) if getattr(x, "sharding", None) is not None]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
