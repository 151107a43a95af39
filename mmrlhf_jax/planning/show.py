"""Plans as text: a page for one plan, and a table of several."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax.accelerators import GiB
from mmrlhf_jax.planning.audit import ROWS
from mmrlhf_jax.planning.compiled import shown_bytes
from mmrlhf_jax.planning.generation import Generation
from mmrlhf_jax.planning.plan import Plan
from mmrlhf_jax.planning.table import Table

SPILLS_SHOWN = 3  # of the arrays that a step should not write


def as_text(plan: Plan) -> str:
    """A plan as a page of text."""
    lines = [*_head(plan), *_step(plan), *_placement(plan), *_spills(plan), *_bounds(plan), *_beside(plan)]
    lines.append(f"  compiled in {plan.step.seconds:.0f} s{'' if plan.step.machine_code else ', without machine code'}")
    lines.append("  fits" if plan.fits else f"  {plan.advice}")
    return "\n".join(lines)


def _head(plan: Plan) -> list[str]:
    """The devices, the model and the rows that the plan is for."""
    mesh = shown_mesh(plan) or "one device"
    budget = plan.workload.budget
    lines = [
        f"{plan.experiment} on {plan.launch}: {plan.devices} devices ({mesh})",
        f"  model      {plan.model_source}",
        f"  rows       {plan.rows} of {budget.slots} slots, {budget.tiles} tiles, {budget.targets} targets{_pieces(plan)};"
        f" {plan.workload.fill:.0%} filled, {plan.workload.used['pairs']:.1f} pairs each; {plan.workload.source}",
    ]
    if plan.stand_in:
        lines.append(
            "  compiled for CPU devices in the place of GPUs: memory and times are estimates, up to three times too high,"
            " collectives are the partitioner's; XLA's own compiler for GPUs comes with `pip install -e '.[plan-gpu]'`"
        )
    return lines


def _step(plan: Plan) -> list[str]:
    """Memory, FLOPs and collectives of the train step."""
    lines, memory = [], plan.step.memory
    if memory is not None:
        parts = f"arguments {shown_bytes(memory.arguments)}, temporaries {shown_bytes(memory.temporaries)}"
        lines.append(f"  memory     {shown_bytes(plan.peak)} of {shown_bytes(plan.chip.hbm_bytes)} per device: {parts}")
    if plan.by_triton is not None:
        lines.append(
            f"             with matrix products by cuBLAS; {shown_bytes(plan.by_triton)} with those by Triton that it can do:"
            " a run chooses for each on the device"
        )
    if plan.flops is not None:
        done = plan.flops - plan.executed.skipped
        lines.append(
            f"  FLOPs      {plan.flops:.4g} per step at most ({plan.flops / plan.executed.total:.3f} of the analytic count),"
            f" {done:.4g} where attention skips what this data's masks hide, {plan.executed.useful / done:.0%} of these useful"
        )
    if plan.step.uncounted_loops:
        lines.append(f"  {plan.step.uncounted_loops} loops have unknown trip counts and are counted once, which is too few")
    for each in plan.step.collectives:
        if each.bytes >= 2**20:
            lines.append(
                f"  {each.kind:<18} over {each.axis:<12} {shown_bytes(each.bytes):>12} in {each.count} (largest"
                f" {shown_bytes(each.largest)}), {each.seconds * 1e3:.1f} ms"
            )
    return lines


def _bounds(plan: Plan) -> list[str]:
    """What the roofline says of the train step's time; nothing if the step does not fit."""
    roofline = plan.step.roofline
    if roofline is None:
        return []
    return [
        f"  roofline   compute {roofline.compute_seconds:.3f} s, memory {roofline.hbm_seconds:.3f} s, links"
        f" {roofline.interconnect_seconds:.3f} s: bound by {roofline.bound}",
        f"  at best    {plan.step_seconds:.3f} s a step, {plan.flop_utilisation:.1%} of peak,"
        f" {plan.pairs_per_second:.4g} pairs/s, {plan.chip_hours_per_epoch:.4g} chip-hours an epoch",
    ]


def _beside(plan: Plan) -> list[str]:
    """The memory of the programs that are planned beside the train step."""
    lines = []
    for name, each in plan.passes.items():
        beside = f", {shown_bytes(each.resident)} of them kept beside it" if each.resident else ""
        lines.append(f"  {name:<10} {shown_bytes(each.needed)} per device{beside}, compiled in {each.program.seconds:.0f} s")
    if plan.generation is not None:
        lines += _generation(plan.generation)
    return lines


def _generation(generation: Generation) -> list[str]:
    """Memory, placement and bounds of a decoding step."""
    step, lane, mesh = generation.step, generation.lane, generation.mesh
    lines = [
        f"  generation {shown_bytes(step.needed)} per device, compiled in {step.seconds:.0f} s; each host for itself,"
        f" data {mesh['data']} x tensor {mesh['tensor']}: {generation.sequences} texts at a time, of up to {lane.branch} tokens"
        f" behind trunks of up to {lane.trunk}"
    ]
    if step.roofline is not None:
        lines.append(
            f"             at best {step.roofline.step_seconds * 1e3:.1f} ms a token ({step.roofline.bound}),"
            f" {generation.tokens_per_second:,.0f} tokens/s on {generation.hosts} host{'s' * (generation.hosts > 1)}"
        )
        logits = f"logits ({shown_bytes(generation.logits)})" if generation.logits else ""
        found = shown_bytes(generation.gathered) if generation.gathered else "nothing"
        joined = " beside " if generation.gathered else " but "
        lines.append(f"             a step gathers {found}{joined + logits if logits else ''}")
    return lines


def _pieces(plan: Plan) -> str:
    return f", taken in {plan.accumulation} pieces" if plan.accumulation > 1 else ""


def _placement(plan: Plan) -> list[str]:
    """The results of the audit (`planning.audit`), as lines; none if rows are not sharded over `fsdp` or nothing was
    audited."""
    if plan.step.memory is None or plan.mesh[ROWS] == 1 or plan.stand_in:
        return []
    whole, gathered = plan.step.reduced_whole, plan.step.gathered_activations
    gradients = f"ALL-REDUCED: {', '.join(whole)}" if whole else "none is all-reduced, all are reduce-scattered"
    activations = f"GATHERED: {', '.join(gathered)}" if gathered else f"none is gathered over {ROWS}"
    return [f"  gradients  {gradients}", f"  activations {activations}"]


def _spills(plan: Plan) -> list[str]:
    """The result of the audit of what the step writes to memory (`planning.spills`), as a line; none if it was not audited."""
    found = plan.step.spilled
    if found is None:
        return []
    if not found:
        return ["  buffers    none is larger than the design's: no attention scores, no whole logits, no float32 copies"]
    more = f"; and {len(found) - SPILLS_SHOWN} smaller ones" if len(found) > SPILLS_SHOWN else ""
    return [f"  buffers    SPILLED: {'; '.join(found[:SPILLS_SHOWN])}{more}"]


def shown_mesh(plan: Plan) -> str:
    """The axes of the plan's mesh that are larger than 1."""
    return " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1)


def table_of(plans: Sequence[Plan]) -> Table:
    """The table of some plans."""
    meshes = {(plan.launch, shown_mesh(plan)) for plan in plans}
    chosen = len(meshes) > len({plan.launch for plan in plans})
    names = {plan.experiment: plan.experiment.split(", ") for plan in plans}
    found = Table([group[-1] for group in names.values()], shared={group[-1]: group[:-1] for group in names.values()})
    for launch in dict.fromkeys(plan.launch for plan in plans):
        here = [plan for plan in plans if plan.launch == launch]
        mesh = ", ".join(dict.fromkeys(map(shown_mesh, here)))  # there may be several meshes if `--fit` chose them
        cells = {names[plan.experiment][-1]: (f"{shown_mesh(plan)}: " if chosen else "") + _cell(plan) for plan in here}
        found.rows[launch] = mesh, f"{here[0].chip.hbm_bytes / GiB:.1f}", cells
    return found


def _cell(plan: Plan) -> str:
    """GiB per chip (with ~ for stand-ins), bound on pairs/s and the resource that limits it, chip-hours per epoch."""
    needed = f"{'~' if plan.stand_in else ''}{plan.peak / GiB:.1f}"
    if not plan.fits:
        return f"needs {needed}"
    if plan.step.roofline is None:
        return needed
    rate, hours = (f"{float(f'{x:.3g}'):,g}" for x in (plan.pairs_per_second, plan.chip_hours_per_epoch))
    return f"{needed}, {rate}/s ({plan.step.roofline.bound}), {hours} h"
