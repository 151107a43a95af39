"""What a compiled program's text and the compiler's books say of it: memory, FLOPs, collectives, the roofline."""

from __future__ import annotations

import dataclasses

from mmrlhf_jax.accelerators import GB, Chip, GiB
from mmrlhf_jax.planning.audit import gathered_activations, reduced_whole
from mmrlhf_jax.planning.hlo import flops, parse
from mmrlhf_jax.planning.program import Memory, Program
from mmrlhf_jax.planning.roofline import Collective, Roofline, collectives, hbm_bytes, messages


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program. With `memory` None it does not fit: `needed` is what the compiler found that it takes."""

    seconds: float  # of compiling, when it was compiled
    machine_code: bool  # False: the compiler was stopped before
    needed: int
    memory: Memory | None
    device_flops: float | None
    collectives: list[Collective]
    roofline: Roofline | None
    uncounted_loops: int = 0  # whose trips the program does not say: FLOPs, collectives and times are then too few
    reduced_whole: tuple[str, ...] = ()  # gradients, where they should be scattered
    gathered_activations: tuple[str, ...] = ()  # over the axis that shares the rows


def read_program(
    program: Program,
    mesh_shape: dict[str, int],
    slices: dict[str, int],
    chip: Chip,
    *,
    skipped: float = 0.0,
    parameters: dict[int, int] | None = None,
) -> Compiled:
    """`skipped`: FLOPs per device that the text counts and kernels are known to leave out; `parameters`: sizes
    (`audit.used_sizes`) by which what is sent is judged."""
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
    return Compiled(program.seconds, program.machine_code, program.needed, *counted, *map(tuple, judged))


def shown_bytes(count: float) -> str:
    return f"{count / GiB:.2f} GiB" if count >= GB / 10 else f"{count / 2**20:.1f} MiB"
