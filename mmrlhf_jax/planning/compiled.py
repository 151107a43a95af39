"""Figures of a compiled program, from its HLO text and its buffer assignment: memory, FLOPs, collectives, roofline."""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.accelerators import GB, Chip, GiB
from mmrlhf_jax.planning.audit import gathered_activations, reduced_whole
from mmrlhf_jax.planning.flops import flops
from mmrlhf_jax.planning.hlo import parse
from mmrlhf_jax.planning.program import Memory, Program
from mmrlhf_jax.planning.roofline import Collective, Roofline, collectives, hbm_bytes, messages
from mmrlhf_jax.planning.spills import Design, spills


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled program. If `memory` is None it does not fit, and `needed` is the compiler's figure for what it needs."""

    seconds: float  # compile time (of the first compilation, if it comes from the cache)
    machine_code: bool  # False: the compiler was stopped before generating machine code
    needed: int  # bytes per device
    memory: Memory | None
    device_flops: float | None
    collectives: list[Collective]
    roofline: Roofline | None
    uncounted_loops: int = 0  # loops with unknown trip count, counted once; FLOPs, collectives and times are then too low
    reduced_whole: tuple[str, ...] = ()  # gradients that are all-reduced instead of reduce-scattered (`audit`)
    gathered_activations: tuple[str, ...] = ()  # activations that are gathered over the row axis (`audit`)
    spilled: tuple[str, ...] | None = None  # arrays written that the design does not have (`spills`); None: not audited


def read_program(
    program: Program,
    mesh_shape: dict[str, int],
    slices: dict[str, int],
    chip: Chip,
    *,
    skipped: float = 0.0,
    parameters: dict[int, int] | None = None,
    design: Design | None = None,
) -> Compiled:
    """Analyse a program. `skipped` are FLOPs per device that the HLO text counts but attention kernels skip; `parameters` are
    sizes (`audit.used_sizes`) for the audit of its communication, and `design` is for that of what it writes to memory; each is
    left out if None."""
    if program.text is None:
        return Compiled(program.seconds, program.machine_code, program.needed, None, None, [], None)
    module = parse(program.text)
    sent = messages(module, mesh_shape, slices, chip)
    device_flops = flops(module)
    roofline = Roofline(
        compute_seconds=(device_flops - skipped) / chip.flops,
        hbm_seconds=hbm_bytes(module) / chip.hbm_bandwidth,
        interconnect_seconds=sum(each.seconds * each.times for each in sent),
    )
    judged = () if parameters is None else (reduced_whole(sent, parameters), gathered_activations(sent, parameters))
    counted = program.memory, device_flops, collectives(sent), roofline, module.uncounted_loops
    found = Compiled(program.seconds, program.machine_code, program.needed, *counted, *map(tuple, judged))
    return found if design is None else dataclasses.replace(found, spilled=tuple(spills(module, design)))


def shown_bytes(count: float) -> str:
    return f"{count / GiB:.2f} GiB" if count >= GB / 10 else f"{count / 2**20:.1f} MiB"
