"""`mmrlhf plan`: compiles the real train step for a launch file's devices, without having them, and reports memory, collectives
and bounds on speed."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import Chip
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.planning.advice import advice
from mmrlhf_jax.planning.audit import used_sizes
from mmrlhf_jax.planning.compiled import Compiled, read_program
from mmrlhf_jax.planning.executed import Executed, executed_flops
from mmrlhf_jax.planning.generation import Generation, generation_place, lower_generation
from mmrlhf_jax.planning.lowering import (
    PASSES,
    launch_mesh,
    lower_step,
    model_sizes,
    resident_bytes,
    run_passes,
    step_arguments,
    with_budget,
)
from mmrlhf_jax.planning.program import Lowering, Program, Target, compile_lowered, optimise
from mmrlhf_jax.planning.spills import design_of
from mmrlhf_jax.planning.topology import chip_of, compiles_for_gpus, gpu_target
from mmrlhf_jax.planning.workload import Workload, find_workload
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.mesh import use_mesh
from mmrlhf_jax.training.layout import check_layout, with_accumulation
from mmrlhf_jax.training.learning import check_learning


@dataclasses.dataclass(frozen=True)
class Pass:
    """A forward pass of a run over a batch: its program, and the bytes per device of arrays that stay allocated meanwhile."""

    program: Compiled
    resident: int

    @property
    def needed(self) -> int:
        return self.program.needed + self.resident


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan of an experiment on a launch file's devices. Rates and times are roofline bounds; None if it does not fit."""

    experiment: str
    launch: str
    chip: Chip
    mesh: dict[str, int]
    devices: int
    rows: int  # rows of the global batch
    accumulation: int  # pieces of gradient accumulation
    workload: Workload
    model_source: str
    step: Compiled
    executed: Executed  # FLOPs of one step on all devices, counted from shapes
    generation: Generation | None
    passes: dict[str, Pass]  # by name (`PASSES`): evaluation and reference pass
    advice: str | None  # what to change; None if the plan fits
    stand_in: bool  # compiled for CPU devices that stand in for GPUs
    by_triton: int | None = None  # bytes per device of the step with matrix products by Triton instead of cuBLAS, for GPUs

    @property
    def peak(self) -> int:
        beside = [each.needed for each in self.passes.values()]
        return max(self.step.needed, self.generation.step.needed if self.generation else 0, *beside)

    @property
    def fits(self) -> bool:
        programs = [self.step, *(each.program for each in self.passes.values())]
        programs += [] if self.generation is None else [self.generation.step]
        return all(program.memory is not None for program in programs) and self.peak <= self.chip.hbm_bytes

    @property
    def flops(self) -> float | None:
        return None if self.step.device_flops is None else self.step.device_flops * self.devices

    @property
    def step_seconds(self) -> float | None:
        return None if self.step.roofline is None else self.step.roofline.step_seconds

    @property
    def flop_utilisation(self) -> float | None:
        """Upper bound on the share of the chips' peak that goes into useful FLOPs."""
        if self.step_seconds is None:
            return None
        return self.executed.useful / (self.step_seconds * self.chip.flops * self.devices)

    @property
    def pairs_per_second(self) -> float | None:
        return None if self.step_seconds is None else self.rows * self.workload.used["pairs"] / self.step_seconds

    @property
    def chip_hours_per_epoch(self) -> float | None:
        if self.step_seconds is None:
            return None
        return -(-self.workload.rows // self.rows) * self.step_seconds * self.devices / 3600


def make_plan(
    experiment: config.Experiment,
    launch: config.Launch,
    *,
    names: tuple[str, str] = ("", ""),
    generation: bool = True,
    passes: bool = False,
    quick: bool = False,
    workload: Workload | None = None,
) -> Plan:
    """Compile the experiment for the launch file's devices; with `quick`, without machine code.

    With `passes`, the evaluation of held-out data and the reference pass are planned too, if the experiment has them.
    `workload` is the result of `find_workload`, which does not depend on mesh, accumulation and remat policy. `names` are those
    of experiment and launch file, for messages. UserError if the experiment does not divide over the devices, or if
    its learning does not fit the model (`check_learning`).
    """
    sizes, source = model_sizes(experiment)
    check_learning(experiment, sizes)
    mesh = launch_mesh(launch)
    asked, experiment = experiment, with_accumulation(experiment, launch, mesh.shape)
    check_layout(experiment, sizes, mesh.shape)
    workload = find_workload(experiment, sizes) if workload is None else workload
    experiment = with_budget(experiment, workload.budget)
    executed = executed_flops(sizes, experiment, workload, mesh)
    say(f"{names[0]} on {names[1]}: {source}; {workload.source}; {mesh.size} devices, compiling")
    compiled = _Compiler(experiment, launch, mesh, quick)
    # No audit of stand-ins: for GPUs, XLA turns some of their all-reduces into reduce-scatters.
    judged = {} if compiled.stand_in else _design(experiment, sizes, mesh, spills=compiled.is_gpu)
    plan = Plan(
        *names,
        chip=compiled.chip,
        mesh=dict(mesh.shape),
        devices=mesh.size,
        rows=experiment.batch.rows,
        accumulation=experiment.batch.accumulation,
        workload=workload,
        model_source=source,
        step=compiled(lower_step, skipped=executed.skipped / mesh.size, **judged),
        executed=executed,
        generation=_generation(compiled) if generation else None,
        passes=_compiled_passes(compiled, sizes) if passes else {},
        advice=None,
        stand_in=compiled.stand_in,
        by_triton=compiled.by_triton(lower_step),
    )
    return plan if plan.fits else dataclasses.replace(plan, advice=advice(plan.peak, plan.chip, asked, launch, mesh))


@dataclasses.dataclass(frozen=True)
class _Compiler:
    """Compiles the programs of an experiment for the devices of a launch file; with `quick`, without machine code."""

    experiment: config.Experiment
    launch: config.Launch
    mesh: Mesh
    quick: bool

    @property
    def chip(self) -> Chip:
        return chip_of(self.launch)

    @property
    def is_gpu(self) -> bool:
        return self.chip.target is not None

    @property
    def stand_in(self) -> bool:
        return self.is_gpu and not compiles_for_gpus()

    def __call__(self, lower: Lowering, mesh: Mesh | None = None, **judged) -> Compiled:
        """The program that `lower` makes, for `mesh` of one host (default: that of the launch file)."""
        shape, slices = (self.mesh.shape, self.launch.mesh.slices) if mesh is None else (mesh.shape, {})
        return read_program(self._program(lower), dict(shape), slices, self.chip, **judged)

    def by_triton(self, lower: Lowering) -> int | None:
        """Bytes per device that the program needs with matrix products by Triton; None if `quick`, or if it is not for GPUs."""
        if self.quick or not self.is_gpu or self.stand_in:
            return None
        return optimise(lower, self.experiment, self.launch, target=self._gpu(triton=True)).needed

    def _program(self, lower: Lowering) -> Program:
        if self.stand_in:
            target = Target("cpu")  # machine code of a CPU says nothing about a GPU
        elif self.is_gpu:
            target = self._gpu()
        elif self.quick and self.launch.accelerator is not None:
            target = Target("tpu")
        else:
            return compile_lowered(*lower(self.experiment, self.launch))
        return optimise(lower, self.experiment, self.launch, target=target)

    def _gpu(self, *, triton: bool = False) -> Target:
        return Target("gpu", self.launch.environment.get("XLA_FLAGS", ""), gpu_target(self.chip), triton)


def _generation(compiled: _Compiler) -> Generation:
    mesh, lane, hosts = generation_place(compiled.experiment, compiled.launch)
    vocabulary = model_sizes(compiled.experiment)[0].text.vocab_size
    logits = 4 * lane.slots * vocabulary if mesh.shape["tensor"] > 1 else 0
    return Generation(compiled(lower_generation, mesh), dict(mesh.shape), lane, hosts, logits)


def _design(experiment: config.Experiment, sizes: ModelConfig, mesh: Mesh, *, spills: bool) -> dict[str, Any]:
    """What the audits of the train step compare it with: sizes of its parameters (`audit.used_sizes`) and, with `spills`, the
    arrays that it may write (`spills.Design`)."""
    with use_mesh(mesh):
        _, state, _ = step_arguments(experiment, sizes, mesh)
    found = {"parameters": used_sizes((state.params, state.frozen))}
    return found | ({"design": design_of(sizes, experiment, state, mesh)} if spills else {})


def _compiled_passes(compiled: _Compiler, sizes: ModelConfig) -> dict[str, Pass]:
    """The forward passes that a run computes beside its steps, by name."""
    with use_mesh(compiled.mesh):
        resident = resident_bytes(compiled.experiment, sizes, compiled.mesh)
    return {name: Pass(compiled(PASSES[name]), resident[name]) for name in run_passes(compiled.experiment)}


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as a JSON object, for other programs."""
    memory, roofline = plan.step.memory, plan.step.roofline
    return {
        "experiment": plan.experiment,
        "launch": plan.launch,
        "fits": plan.fits,
        "hbm_peak_bytes": plan.peak,
        "hbm_capacity_bytes": plan.chip.hbm_bytes,
        "hbm": None if memory is None else dataclasses.asdict(memory),
        "flops": plan.flops,
        "analytic_flops": plan.executed.total,
        "skipped_flops": plan.executed.skipped,
        "useful_flops": plan.executed.useful,
        "collectives": [dataclasses.asdict(each) for each in plan.step.collectives],
        "reduced_whole": None if plan.stand_in else plan.step.reduced_whole,  # None: not audited
        "gathered_activations": None if plan.stand_in else plan.step.gathered_activations,
        "uncounted_loops": plan.step.uncounted_loops,
        "spilled": plan.step.spilled,
        "roofline": None if roofline is None else dataclasses.asdict(roofline) | {"bound": roofline.bound},
        "step_seconds_bound": plan.step_seconds,
        "flop_utilisation_bound": plan.flop_utilisation,
        "pairs_per_second_bound": plan.pairs_per_second,
        "chip_hours_per_epoch_bound": plan.chip_hours_per_epoch,
        "compile_seconds": plan.step.seconds,
        "machine_code": plan.step.machine_code,
        "generation": None if plan.generation is None else _generation_json(plan.generation),
        **{name: None for name in PASSES},
        **{
            name: {
                "hbm_peak_bytes": each.needed,
                "hbm": None if each.program.memory is None else dataclasses.asdict(each.program.memory),
                "resident_bytes": each.resident,
                "compile_seconds": each.program.seconds,
            }
            for name, each in plan.passes.items()
        },
        "mesh": plan.mesh,
        "rows": plan.rows,
        "accumulation": plan.accumulation,
        "budget": dataclasses.asdict(plan.workload.budget),
        "model": plan.model_source,
        "workload": plan.workload.source,
        "stand_in": plan.stand_in,
        "hbm_peak_bytes_by_triton": plan.by_triton,
        "advice": plan.advice,
    }


def _generation_json(generation: Generation) -> dict[str, Any]:
    roofline = generation.step.roofline
    return {
        "hbm_peak_bytes": generation.step.needed,
        "compile_seconds": generation.step.seconds,
        "mesh": generation.mesh,
        "lane": dataclasses.asdict(generation.lane),
        "sequences_per_host": generation.sequences,
        "hosts": generation.hosts,
        "collectives": [dataclasses.asdict(each) for each in generation.step.collectives],
        "roofline": None if roofline is None else dataclasses.asdict(roofline) | {"bound": roofline.bound},
        "tokens_per_second_bound": generation.tokens_per_second,
        "logits_bytes": generation.logits,
        "gathered_bytes": generation.gathered,
    }
