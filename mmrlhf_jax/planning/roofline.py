"""Roofline of a compiled step: lower bounds on the time of matrix units, HBM and interconnect. Loops count by trip count."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from mmrlhf_jax.accelerators import Chip
from mmrlhf_jax.planning.flops import by_cublas
from mmrlhf_jax.planning.hlo import Array, Computation, Instruction, Module
from mmrlhf_jax.sharding.ring import RING

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes in one step. `bytes` is the sum per device of the larger of each
    one's operands and results."""

    kind: str
    axis: str
    bytes: int
    count: int
    largest: int  # bytes of the largest collective
    seconds: float  # at full bandwidth of the links


@dataclasses.dataclass(frozen=True)
class Message:
    """One collective instruction of a program's text."""

    kind: str
    axes: tuple[str, ...]  # mesh axes
    devices: int  # devices in one group
    arrays: tuple[Array, ...]  # the larger of operands and results: results of an all-gather, operands of a reduce-scatter
    ring: bool  # one step of a ring; `arrays` are the shards that are passed on
    bytes: int
    times: float  # executions per step
    seconds: float  # per execution


def messages(module: Module, mesh_shape: dict[str, int], slices: dict[str, int], chip: Chip) -> list[Message]:
    """The collectives that a program executes. `slices` are the factors of the mesh axes that run over the network."""
    found, rings = [], _rings(module)
    for computation, instruction, times in _once(module):
        if instruction.opcode == "send" and _MEGASCALE in instruction.attributes:
            found.append(_between_slices(instruction, times, slices, chip))
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        axes, devices, parts = _axes(instruction, mesh_shape, slices)
        if not axes:
            continue
        # On TPUs a reduce-scatter is a fusion of an all-reduce and a slice.
        if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
            kind = "reduce-scatter"
        computed = kind
        if kind == "collective-permute":
            kind = rings.get(_source(instruction), kind)
        known = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
        operands = tuple(array for operand in known for array in operand.arrays)
        results = _results(instruction, known)
        arrays = max(results, operands, key=lambda each: sum(array.bytes for array in each))
        size = sum(array.bytes for array in arrays)
        ring = instruction.opcode.startswith("collective-permute")
        seconds = _seconds(computed, size, devices, parts, chip)
        found.append(Message(kind, axes, devices, arrays, ring, size, times, seconds))
    return found


# libtpu writes collectives between slices as sends with this attribute: a host of each slice sends its part, receives the sum.
_MEGASCALE = "xla_megascale_runtime"


def _between_slices(send: Instruction, times: float, slices: dict[str, int], chip: Chip) -> Message:
    kind = re.search(r'rendezvous="([a-z\-]+)', send.attributes)
    array = send.arrays[0]
    axes = tuple(axis for axis, count in slices.items() if count > 1)
    name = kind[1] if kind else "send"
    return Message(
        "all-reduce" if name == "psum" else name,
        axes,
        math.prod(slices.values()),
        (array,),
        False,
        array.bytes,
        times,
        array.bytes / chip.network,
    )


def collectives(sent: Sequence[Message]) -> list[Collective]:
    """Sum the messages by kind and mesh axes ("fsdp", or "data+fsdp" for one that spans both), largest first."""
    found: dict[tuple[str, str], list[Message]] = defaultdict(list)
    for each in sent:
        found[each.kind, "+".join(each.axes)].append(each)
    summed = (
        Collective(
            kind,
            axis,
            bytes=int(sum(each.bytes * each.times for each in together)),
            count=int(sum(each.times for each in together)),
            largest=max(each.bytes for each in together),
            seconds=sum(each.seconds * each.times for each in together),
        )
        for (kind, axis), together in found.items()
    )
    return sorted(summed, key=lambda collective: -collective.bytes)


def _seconds(kind: str, size: int, devices: int, parts: int, chip: Chip) -> float:
    """The least time of a collective of `size` bytes in groups of `devices`, each in `parts` slices or hosts.

    What several GPUs of a host need from another host crosses the network once, over all their shares of it.
    """
    if parts > 1 and chip.target is None:
        return size * _passes(kind, devices) / chip.network
    within = size * _passes(kind, devices) / (chip.links / 2)
    sharing = devices // parts if kind in ("all-gather", "all-reduce", "reduce-scatter") else 1
    return max(within, size * _passes(kind, parts) / (sharing * chip.network) if parts > 1 else 0.0)


def _passes(kind: str, devices: int) -> float:
    """How many times a collective's bytes enter each device in a ring algorithm."""
    share = (devices - 1) / max(devices, 1)
    return {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)


def _once(module: Module) -> Iterator[tuple[Computation, Instruction, float]]:
    """Yield (computation, instruction, executions) for every instruction, with each collective once.

    libtpu overlaps a collective with other operations by spreading its start, steps and end over several fusions with the same
    channel; it then runs as often as the rarest of them. A reduce-scatter lies in one fusion; if its channel occurs twice, a
    loop's first iteration was peeled, and both count."""
    channels: dict[str, tuple[Computation, Instruction, float]] = {}
    for computation, instruction, times, fused in module.executed():
        spread = fused and "all-reduce-scatter" not in computation.name
        channel = re.search(r"channel_id=(\d+)", instruction.attributes) if spread else None
        if channel is None:
            yield computation, instruction, times
        elif channel[1] not in channels or times < channels[channel[1]][2]:
            channels[channel[1]] = computation, instruction, times
    yield from channels.values()


def _rings(module: Module) -> dict[str, str]:
    """Source location -> kind ("all-gather", "reduce-scatter") of collectives that are decomposed into a ring of permutes: by
    XLA, to overlap them with a matrix product, or by `sharding.ring`.

    The key is the source location because the ring's first and last steps lie outside its loop but have the same location.
    """
    found = {}
    for computation in module.computations.values():
        if "windowed_dot_general_body" in computation.name:
            kind = "reduce-scatter" if "body_rs" in computation.name else "all-gather"
            permutes = (i for i in computation.instructions.values() if i.opcode.startswith("collective-permute"))
            found |= {_source(permute): kind for permute in permutes}
        for instruction in computation.instructions.values():
            if instruction.opcode.startswith("collective-permute") and RING in instruction.attributes:
                found[_source(instruction)] = "reduce-scatter"
    return found


def _source(instruction: Instruction) -> str:
    metadata = re.search(r"metadata=\{([^}]*)\}", instruction.attributes)
    return metadata[1] if metadata else instruction.name


def _axes(instruction: Instruction, mesh_shape: dict[str, int], slices: dict[str, int]) -> tuple[tuple[str, ...], int, int]:
    """The mesh axes that one group of a collective spans, its number of devices, and the number of slices or hosts that they
    are in; for a permute the number of those that its pairs may lie between."""
    group = _first_group(instruction.attributes)
    places = np.array(np.unravel_index(np.asarray(group), tuple(mesh_shape.values())))
    axes = tuple(name for name, along in zip(mesh_shape, places, strict=True) if len(set(along.tolist())) > 1)
    if instruction.opcode.startswith("collective-permute"):
        return axes, len(group), math.prod(slices.get(axis, 1) for axis in axes)
    within = [[size // slices.get(name, 1)] for name, size in mesh_shape.items()]
    return axes, len(group), len(set(map(tuple, (places // within).T.tolist())))


def _first_group(attributes: str) -> list[int]:
    pairs = re.search(r"source_target_pairs=\{\{([\d,]+)\}", attributes)
    explicit = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if pairs or explicit:
        found = [int(i) for i in (pairs or explicit)[1].split(",")]
        return found if found[0] != found[-1] or len(found) == 1 else found[:1]
    named = re.search(r"replica_groups=(mesh\[[^{]*)\{([^}]*)\}", attributes)
    if named:
        return _named_group(*named.groups())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota is None:
        return [0]
    groups, dims, order = ([int(i) for i in part.split(",")] if part else None for part in iota.groups())
    ids = np.arange(np.prod(dims)).reshape(dims)
    ids = ids.transpose(order) if order else ids
    return ids.reshape(groups)[0].tolist()


def _named_group(mesh: str, axes: str) -> list[int]:
    """The first group for a mesh like `mesh['a'=2,'b'=16]` and axes like `'b'`; `'b':(4)2` means the factor of size 2 of b that
    comes after a factor of size 4."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    order = re.search(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", mesh)
    ids = np.arange(np.prod(list(sizes.values())))
    if order:
        dims, permutation = ([int(i) for i in part.split(",")] if part else None for part in order.groups())
        ids = ids.reshape(dims).transpose(permutation)
    chosen = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in _PART.findall(axes)}
    shape, keep = [], []
    for name, size in sizes.items():
        before, part = chosen.get(name, (size, 1))
        shape += [before, part, size // before // part]
        keep += [0, slice(None) if name in chosen else 0, 0]
    return ids.reshape(shape)[tuple(keep)].flatten().tolist()


_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")

# Instructions that move no bytes themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "partition-id"}
FREE |= {"after-all", "opt-barrier", "iota", "async-start", "async-update", "replica-id"}
SLICES = ("dynamic-slice", "gather", "slice")


def hbm_bytes(module: Module) -> float:
    """Bytes of HBM that one run reads and writes on one device: operands and results of fusions and of all instructions outside
    them, except those in on-chip memory.

    A fusion that slices an operand counts as reading the slice; one that updates its result in place as writing the update.
    """
    total = 0.0
    for computation, instruction, times, fused in module.executed():
        if not fused and instruction.opcode not in FREE and not instruction.opcode.endswith("-done"):
            total += times * _traffic(module, computation, instruction)
    return total


def _in_hbm(arrays: Sequence[Array]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)


def _traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    operands = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
    written = float(_in_hbm(_results(instruction, operands)))
    if instruction.opcode in SLICES:
        return written + (instruction.bytes if _in_hbm(operands[0].arrays) else 0)
    if instruction.opcode == "dynamic-update-slice":
        return _in_hbm(operands[1].arrays) + (operands[1].bytes if written else 0.0)
    if instruction.opcode != "fusion":
        return written + sum(_in_hbm(operand.arrays) for operand in operands)
    body = module.computations[instruction.called["calls"][0]]
    updates = [i for i in body.instructions.values() if i.opcode == "dynamic-update-slice"]
    in_place = {_behind_bitcasts(body, i.operands[0]) for i in updates}
    read = 0.0
    for parameter, operand in zip(_parameters(body), operands, strict=False):
        whole = _in_hbm(operand.arrays)
        if whole and parameter.name not in in_place:
            read += min(_read(module, body, parameter), whole)
    for update in updates:
        part = body.instructions[update.operands[1]].bytes if update.operands[1] in body.instructions else 0
        written += part - update.bytes if written >= update.bytes else 0
    return read + max(written, 0.0)


def _read(module: Module, body: Computation, parameter: Instruction) -> int:
    """Bytes of a parameter that a fusion's body reads: the slices if it only slices it (also in nested fusions, and behind a
    bitcast), else all."""
    read = 0
    users = [i for i in body.instructions.values() if parameter.name in i.operands]
    for user in users:
        if user.opcode in SLICES and user.operands[0] == parameter.name:
            read += user.bytes
        elif user.opcode == "bitcast":
            read += _read(module, body, user)
        elif user.opcode == "fusion":
            inner = module.computations[user.called["calls"][0]]
            inside = zip(_parameters(inner), user.operands, strict=False)
            read += sum(_read(module, inner, each) for each, operand in inside if operand == parameter.name)
        else:
            return parameter.bytes
    return read if users else parameter.bytes


def _behind_bitcasts(body: Computation, name: str) -> str:
    """The name of the instruction whose bytes the named one has under another shape; its own if it is no bitcast."""
    while name in body.instructions and body.instructions[name].opcode == "bitcast":
        name = body.instructions[name].operands[0]
    return name


def _parameters(computation: Computation) -> list[Instruction]:
    """The parameters of a computation, in the order of its operands."""
    found = (i for i in computation.instructions.values() if i.opcode == "parameter")
    return sorted(found, key=lambda parameter: int(parameter.operands[0]))


def _results(instruction: Instruction, operands: Sequence[Instruction]) -> tuple[Array, ...]:
    """The arrays that an instruction computes. The tuple of an asynchronous start also contains its operands: for a copy after
    the result, else before the results. A product by cuBLAS has its workspace after the result."""
    if by_cublas(instruction):
        return instruction.arrays[:1]
    if not instruction.opcode.endswith("-start"):
        return instruction.arrays
    if instruction.opcode == "copy-start":
        return instruction.arrays[:1]
    held = sum(len(operand.arrays) for operand in operands)
    return instruction.arrays[held:] if len(instruction.arrays) > held else instruction.arrays


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step on one device if each resource were used at its peak; a step takes at least the largest of them."""

    compute_seconds: float
    hbm_seconds: float
    interconnect_seconds: float

    @property
    def step_seconds(self) -> float:
        return max(self.compute_seconds, self.hbm_seconds, self.interconnect_seconds)

    @property
    def bound(self) -> str:
        return max(("compute", "hbm", "interconnect"), key=lambda part: getattr(self, f"{part}_seconds"))
