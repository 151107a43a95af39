"""`mmrlhf plan`: compiles the real train step for a launch file's devices, without having them, and reports memory, collectives
and bounds on speed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import CHIPS, Chip, accelerator
from mmrlhf_jax.data.pipeline import demanded_budget
from mmrlhf_jax.data.rows import Budget, RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.model_config import read_config
from mmrlhf_jax.inference.generate import PromptRows, generate
from mmrlhf_jax.inference.scoring import make_scoring_step
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.registry import published_config
from mmrlhf_jax.planning.abstract import abstract_batch, abstract_model, abstract_state
from mmrlhf_jax.planning.advice import advice
from mmrlhf_jax.planning.audit import used_sizes
from mmrlhf_jax.planning.compiled import Compiled, read_program
from mmrlhf_jax.planning.executed import Executed, executed_flops
from mmrlhf_jax.planning.program import Lowering, compile_lowered, held_bytes, optimise
from mmrlhf_jax.planning.topology import planned_devices
from mmrlhf_jax.planning.workload import Workload, find_workload
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.mesh import batch_sharding, make_mesh, replicated, rows_divisor, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.layout import check_layout, with_accumulation
from mmrlhf_jax.training.optimizer import make_optimizer
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.step import Step, make_eval_step, make_train_step

PLANNED_STEPS = 1000  # length of the learning rate schedule, which does not change what is planned
NOTHING = config.Trains(projector=False, newline=False, language_model=False, reward_head=False)
PROMPT, NEW_TOKENS = 4096, 512  # tokens of the generation that is planned beside the step


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
    generation: Compiled | None
    passes: dict[str, Pass]  # by name (`PASSES`): evaluation and reference pass
    advice: str | None  # what to change; None if the plan fits
    stand_in: bool  # compiled for CPU devices that stand in for GPUs

    @property
    def peak(self) -> int:
        beside = [each.needed for each in self.passes.values()]
        return max(self.step.needed, self.generation.needed if self.generation else 0, *beside)

    @property
    def fits(self) -> bool:
        programs = [self.step, *(each.program for each in self.passes.values())]
        programs += [] if self.generation is None else [self.generation]
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
    of experiment and launch file, for messages. UserError if the experiment does not divide over the devices.
    """
    sizes, source = model_sizes(experiment)
    mesh = launch_mesh(launch)
    chip = CHIPS["v5e"] if launch.accelerator is None else accelerator(launch.accelerator).chip
    stand_in = launch.accelerator is not None and not accelerator(launch.accelerator).is_tpu
    asked, experiment = experiment, with_accumulation(experiment, launch, mesh.shape)
    check_layout(experiment, sizes, mesh.shape)
    workload = find_workload(experiment, sizes) if workload is None else workload
    experiment = with_budget(experiment, workload.budget)
    executed = executed_flops(sizes, experiment, workload, mesh)
    say(f"{names[0]} on {names[1]}: {source}; {workload.source}; {mesh.size} devices, compiling")
    platform = "cpu" if stand_in else "tpu"
    quick = stand_in or (quick and launch.accelerator is not None)  # machine code of a CPU says nothing about a GPU

    def compiled(lower: Lowering, **judged) -> Compiled:
        if quick:
            program = optimise(lower, experiment, launch, platform=platform)
        else:
            program = compile_lowered(*lower(experiment, launch))
        return read_program(program, dict(mesh.shape), launch.mesh.slices, chip, **judged)

    parameters = None  # no audit of stand-ins: for GPUs, XLA turns some of their all-reduces into reduce-scatters
    if not stand_in:
        with use_mesh(mesh):
            _, state, _ = step_arguments(experiment, sizes, mesh)
        parameters = used_sizes((state.params, state.frozen))
    step = compiled(lower_step, skipped=executed.skipped / mesh.size, parameters=parameters)
    generated = compiled(lower_generation) if generation else None
    beside = {}
    if passes:
        with use_mesh(mesh):
            resident = resident_bytes(experiment, sizes, mesh)
        beside = {name: Pass(compiled(PASSES[name]), resident[name]) for name in run_passes(experiment)}
    plan = Plan(
        *names,
        chip=chip,
        mesh=dict(mesh.shape),
        devices=mesh.size,
        rows=experiment.batch.rows,
        accumulation=experiment.batch.accumulation,
        workload=workload,
        model_source=source,
        step=step,
        executed=executed,
        generation=generated,
        passes=beside,
        advice=None,
        stand_in=stand_in,
    )
    return plan if plan.fits else dataclasses.replace(plan, advice=advice(plan.peak, chip, asked, launch, mesh))


def launch_mesh(launch: config.Launch) -> Mesh:
    found = None if launch.accelerator is None else accelerator(launch.accelerator)
    per_slice = found.chips if found is not None and not found.is_tpu else None
    return make_mesh(launch.mesh.model_dump(), planned_devices(launch), per_slice=per_slice)


def model_sizes(experiment: config.Experiment) -> tuple[ModelConfig, str]:
    """(the model's sizes, their source): read from its directory, or the published sizes if there is no directory. UserError if
    there are neither."""
    path = experiment.model.path
    published = published_config(path)
    try:
        sizes, source = read_config(local_directory(path)), path
    except UserError:
        if published is None:
            raise
        sizes, source = published, f"published sizes of {path} (it is not at hand)"
    if experiment.model.reward_head is not None:
        sizes = dataclasses.replace(sizes, reward_head=experiment.model.reward_head)
    return sizes, source


def with_budget(experiment: config.Experiment, budget: Budget) -> config.Experiment:
    """The experiment with every size of its rows set explicitly, instead of derived from the data."""
    return experiment.model_copy(update={"batch": experiment.batch.model_copy(update=dataclasses.asdict(budget))})


def lower_step(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """(the lowered train step of `training.loop`, its abstract arguments, their mesh). The experiment must set all row sizes
    and the accumulation."""
    sizes, _ = model_sizes(experiment)
    mesh = launch_mesh(launch)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        step, *arguments = step_arguments(experiment, sizes, mesh)
        return step.lower(*arguments), tuple(arguments), mesh


def step_arguments(experiment: config.Experiment, sizes: ModelConfig, mesh: Mesh) -> tuple[Step, TrainState, RowBatch]:
    """(train step, abstract state, abstract batch)."""
    task = task_of(experiment.objective)
    tx = make_optimizer(experiment.optimizer, PLANNED_STEPS, experiment.guard)
    model = abstract_model(sizes, experiment, mesh)
    graphdef, state = abstract_state(model, experiment, tx, mesh, keep_start=task.reference == "live")
    step = make_train_step(
        graphdef,
        task,
        tx,
        chunk=experiment.batch.logprob_chunk,
        accumulation=experiment.batch.accumulation,
        seed=experiment.run.seed,
        reference=task.reference,
        features=sizes.geometry.features,
        shardings=jax.tree.map(lambda x: x.sharding, state),
    )
    return step, state, abstract_batch(experiment.batch.rows, demanded_budget(experiment.batch), sizes.geometry, mesh)


def run_passes(experiment: config.Experiment) -> list[str]:
    """The names in `PASSES` of the forward passes that a run of the experiment computes beside its steps."""
    found = [] if experiment.data.held_out is None else ["evaluation"]
    return [*found, "reference"] if task_of(experiment.objective).reference == "cached" else found


def lower_evaluation(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """Like `lower_step`, for the evaluation of one batch of held-out rows."""
    sizes, _ = model_sizes(experiment)
    mesh = launch_mesh(launch)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        graphdef, state, batch = _pass_arguments(experiment, sizes, mesh)
        task = task_of(experiment.objective)
        step = make_eval_step(graphdef, task, chunk=experiment.batch.logprob_chunk, reference=task.reference)
        return step.lower(state, batch), (state.params, state.frozen, batch), mesh


def lower_reference(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """Like `lower_step`, for the reference log-probs of one batch."""
    sizes, _ = model_sizes(experiment)
    mesh = launch_mesh(launch)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        graphdef, state, batch = _pass_arguments(experiment, sizes, mesh)
        arguments = state.params, state.frozen, batch
        return make_scoring_step(graphdef, chunk=experiment.batch.logprob_chunk).lower(*arguments), arguments, mesh


PASSES = {"evaluation": lower_evaluation, "reference": lower_reference}


def resident_bytes(experiment: config.Experiment, sizes: ModelConfig, mesh: Mesh) -> dict[str, int]:
    """Bytes per device, by pass, of allocated arrays that are not arguments of its program: for the evaluation the optimizer's
    state; none for the reference pass, which runs before that state exists."""
    _, state, _ = _pass_arguments(experiment, sizes, mesh)
    start = () if task_of(experiment.objective).reference == "live" else state.start  # a live reference has it as argument
    return {"evaluation": held_bytes((state.opt_state, start)), "reference": 0}


def _pass_arguments(experiment: config.Experiment, sizes: ModelConfig, mesh: Mesh) -> tuple[nnx.GraphDef, TrainState, RowBatch]:
    """(graphdef, abstract state, abstract batch) of a forward pass over the rows of one accumulation piece."""
    batch = experiment.batch
    tx = make_optimizer(experiment.optimizer, PLANNED_STEPS, experiment.guard)
    keep_start = task_of(experiment.objective).reference == "live"
    graphdef, state = abstract_state(abstract_model(sizes, experiment, mesh), experiment, tx, mesh, keep_start=keep_start)
    return graphdef, state, abstract_batch(batch.rows // batch.accumulation, demanded_budget(batch), sizes.geometry, mesh)


def lower_generation(experiment: config.Experiment, launch: config.Launch) -> tuple[jax.stages.Lowered, tuple, Mesh]:
    """Like `lower_step`, for `inference.generate`: weights in the compute dtype, one prompt with one image per batch shard."""
    sizes, _ = model_sizes(experiment)
    mesh = launch_mesh(launch)
    inference = config.Model(path=experiment.model.path, dtype=experiment.model.dtype, frozen_dtype=experiment.model.dtype)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        model = abstract_model(sizes, experiment.model_copy(update={"model": inference, "lora": None, "trains": NOTHING}), mesh)
        graphdef, params = nnx.split(model)
        batch: RowBatch = abstract_batch(rows_divisor(mesh), _prompt_budget(), sizes.geometry, mesh)
        ends = jax.ShapeDtypeStruct((rows_divisor(mesh), 1), jnp.int32, sharding=batch_sharding(mesh, 2))
        rows = PromptRows(batch.tokens, batch.positions, batch.visible_until, ends)
        visual = batch.media
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))
        arguments = params, rows, visual, key
        settings = dict(max_new_tokens=NEW_TOKENS, stop_tokens=(0,), temperature=0.0)
        return generate.lower(graphdef, *arguments, **settings), arguments, mesh


def _prompt_budget() -> Budget:
    return Budget(slots=PROMPT, tiles=5, visual=3072, targets=8, responses=8, pairs=8)


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
        "roofline": None if roofline is None else dataclasses.asdict(roofline) | {"bound": roofline.bound},
        "step_seconds_bound": plan.step_seconds,
        "flop_utilisation_bound": plan.flop_utilisation,
        "pairs_per_second_bound": plan.pairs_per_second,
        "chip_hours_per_epoch_bound": plan.chip_hours_per_epoch,
        "compile_seconds": plan.step.seconds,
        "machine_code": plan.step.machine_code,
        "generation": None
        if plan.generation is None
        else {"hbm_peak_bytes": plan.generation.needed, "compile_seconds": plan.generation.seconds},
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
        "advice": plan.advice,
    }
