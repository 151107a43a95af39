"""`mmrlhf replay`: computes the batch that a run stopped at again, with figures that show which response is to blame."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import exists
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.objectives import summary, target_counts
from mmrlhf_jax.sharding.agreement import together
from mmrlhf_jax.sharding.feed import fetch, own_rows, place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import Task, task_of
from mmrlhf_jax.training.base import load_base
from mmrlhf_jax.training.directory import CONFIG_FILE
from mmrlhf_jax.training.layout import with_accumulation
from mmrlhf_jax.training.record import SavedBatch, as_number, read_batch
from mmrlhf_jax.training.state import TrainState, split_model
from mmrlhf_jax.training.step import loss_and_gradients, reference_outputs, split_rows
from mmrlhf_jax.training.trained import load_trained


@dataclasses.dataclass(frozen=True)
class Response:
    """One response of the batch, with the model's numbers and those stored in the batch; None if there is no such number."""

    group: str
    response: int  # its number in the record, from 1
    row: int
    tokens: int
    logprob: float
    reference: float | None
    reward: float | None  # from the reward head; for a policy, the stored reward

    @property
    def finite(self) -> bool:
        return all(math.isfinite(x) for x in (self.logprob, self.reference, self.reward) if x is not None)

    @property
    def surprise(self) -> float:
        """|log-prob - reference| per token; without a reference, |log-prob| per token."""
        return abs(self.logprob - (self.reference or 0.0)) / max(self.tokens, 1)


@dataclasses.dataclass(frozen=True)
class Replay:
    """The result of replaying a batch."""

    step: int  # the step that the batch belongs to
    parameters: int  # the step whose parameters were used; 0 = the base model
    figures: dict[str, Any]
    gradient_norms: dict[str, float]  # by part of the model
    responses: list[Response]  # those that are not finite first, then the most surprising


def replay(saved: str, launch: config.Launch, *, step: int | None = None, overrides: Sequence[str] = ()) -> Replay:
    """Loss, gradient norms and every response of a saved batch, with the parameters of a checkpoint of its run: that of `step`,
    by default the newest one up to that batch, or the base model if there is none.

    `overrides` change the run's settings, to fit other devices. UserError if the file is no saved batch in a run directory, the
    checkpoint does not exist, or the mesh cannot shard the batch.
    """
    path = epath.Path(saved)
    mesh = make_mesh(launch.mesh.model_dump())
    found = together(lambda: _read(path))
    # The configuration in the run's directory has the accumulation of the run; `overrides` may reset it.
    settle = partial(with_accumulation, launch=launch, axes=mesh.shape)
    # Before the model is loaded.
    together(lambda: _check_objective(path, found, settle(config.load_experiment(path.parent / CONFIG_FILE, overrides))))
    trained = load_trained(path.parent, step=step, mesh=mesh, up_to=found.step, overrides=overrides)
    experiment = settle(trained.experiment)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        graphdef, params, frozen = split_model(trained.model, experiment.trains, experiment.lora)
        task, start = task_of(experiment.objective), None
        if task.reference == "live":
            start = split_model(load_base(experiment, mesh), experiment.trains, experiment.lora)[1]
        statistics = {name: jnp.float32(found.statistics[name]) for name in task.statistics}
        state = TrainState(jnp.int32(found.step), params, frozen, (), start, statistics)
        mine = list(own_rows(mesh, len(found.batch.tokens)))
        placed = place(jax.tree.map(lambda x: x[mine], found.batch), mesh)
        compute = jax.jit(partial(_figures, graphdef, family_of(trained.model.config).parts, experiment, task))
        figures, norms, per_response = jax.tree.map(fetch, compute(state, placed))
    judges = trained.model.config.reward_head is not None
    return Replay(
        found.step,
        trained.step,
        {name: as_number(value) for name, value in figures.items()},
        {name: float(norm) for name, norm in norms.items()},
        _responses(found, *per_response, judges=judges, compares=task.reference is not None),
    )


def _read(path: epath.Path) -> SavedBatch:
    """A saved batch in its run's directory."""
    found = read_batch(path)
    if not exists(path.parent / CONFIG_FILE):
        raise UserError(f"{path}: not in a run directory (no {CONFIG_FILE} beside it)")
    return found


def _check_objective(path: epath.Path, found: SavedBatch, experiment: config.Experiment) -> None:
    """UserError if the batch alone does not determine the loss: the objective has settings that only the training data
    determine, or running statistics that were not saved with the batch."""
    if names := experiment.objective.from_data:
        raise UserError(
            f"{path}: a replay reads no training data, by which objective.{names[0]} of its config.yaml (or of --set) would be"
            " set; give it as a number"
        )
    if missing := [name for name in task_of(experiment.objective).statistics if name not in found.statistics]:
        raise UserError(
            f"{path}: the batch was saved without the running statistics {', '.join(missing)}, which the objective of its"
            " config.yaml (or of --set) needs; replay it with the objective that its run had"
        )


def _figures(
    graphdef: nnx.GraphDef,
    parts: Mapping[str, str],
    experiment: config.Experiment,
    task: Task,
    state: TrainState,
    batch: RowBatch,
):
    """(figures, gradient norms by part, (log-probs, rewards, reference log-probs) float[B, R]), computed as in the run's step.
    `parts` are those of the model (`Family.parts`)."""
    settings = experiment.batch
    chunk = dict(chunk=settings.logprob_chunk)
    value, metrics, grads, statistics = loss_and_gradients(
        graphdef,
        task,
        state,
        batch,
        accumulation=settings.accumulation,
        seed=experiment.run.seed,
        reference=task.reference,
        **chunk,
    )
    norms = {part: optax.tree.norm([grads[n] for n in grads if parts[n] == part]) for part in {parts[n] for n in grads}}

    def outputs(piece: RowBatch):
        found = forward(nnx.merge(graphdef, state.params, state.frozen), piece, **chunk)
        other = reference_outputs(graphdef, state, piece, task.reference, **chunk)
        return found.logps, found.rewards, piece.reference_logps if other is None else other.logps

    pieces = jax.lax.map(outputs, split_rows(batch, settings.accumulation))
    per_response = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), pieces)  # in the batch's order again
    figures = summary(metrics) | {"loss": value, "grad_norm": optax.tree.norm(grads)} | statistics
    return figures, norms, per_response


def _responses(saved: SavedBatch, logps, rewards, reference, *, judges: bool, compares: bool) -> list[Response]:
    """The batch's responses, sorted. `judges`: rewards come from the model's head, else from the batch; `compares`: the
    objective has a reference, else the batch's is shown. In numbers of the batch NaN means none."""
    counts = np.asarray(target_counts(saved.batch.responses, saved.batch.ends.shape[1]))
    found = []
    for at in map(tuple, np.argwhere(saved.batch.response_ids >= 0)):
        reward = float(rewards[at]) if judges else _stored(saved.batch.rewards[at])
        numbers = float(logps[at]), float(reference[at]) if compares else _stored(reference[at]), reward
        found.append(Response(str(saved.groups[at]), int(saved.numbers[at]), int(at[0]), int(counts[at]), *numbers))
    return sorted(found, key=lambda each: (each.finite, -each.surprise if each.finite else 0.0))


def _stored(value: float) -> float | None:
    """A number stored in the batch; NaN there means none."""
    return None if math.isnan(value) else float(value)


def as_json(found: Replay) -> dict[str, Any]:
    """The replay as a JSON object; numbers that are not finite become null."""
    responses = [dataclasses.asdict(each) | {"finite": each.finite} for each in found.responses]
    return strict_json.with_nulls(dataclasses.asdict(found) | {"responses": responses})


def as_text(found: Replay, most: int) -> str:
    """The replay as text, with the first `most` responses."""
    model = f"parameters of step {found.parameters}" if found.parameters else "the base model's parameters"
    lines = [f"batch of step {found.step}, {model}"]
    lines += [f"  {name:<28}{_shown(value)}" for name, value in found.figures.items()]
    lines += ["gradient norm by part", *(f"  {name:<28}{norm:.6g}" for name, norm in found.gradient_norms.items())]
    bad = sum(not each.finite for each in found.responses)
    shown = found.responses[:most]
    order = "those first, then the furthest from the reference, or without one the least likely, per token"
    lines.append(f"{len(found.responses)} responses, {bad} not finite ({order})")
    lines.append(f"  {'row':>4} {'tokens':>7} {'log-prob':>12} {'reference':>12} {'reward':>12}  group, response")
    for each in shown:
        numbers = " ".join(f"{_shown(x):>12}" for x in (each.logprob, each.reference, each.reward))
        mark = "" if each.finite else "  NOT FINITE"
        lines.append(f"  {each.row:>4} {each.tokens:>7} {numbers}  {each.group}, {each.response}{mark}")
    return "\n".join(lines)


def _shown(value: float | list[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else " ".join(f"{x:.4g}" for x in value)
