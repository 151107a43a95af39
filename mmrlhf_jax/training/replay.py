"""`mmrlhf replay`: the batch that a run stopped at, once more, with the figures that say where it goes wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
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
from mmrlhf_jax.objectives import summary, target_counts
from mmrlhf_jax.sharding.agreement import together
from mmrlhf_jax.sharding.feed import fetch, own_rows, place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import Task, task_of
from mmrlhf_jax.training.base import load_base
from mmrlhf_jax.training.directory import CONFIG_FILE
from mmrlhf_jax.training.layout import with_accumulation
from mmrlhf_jax.training.record import SavedBatch, as_number, read_batch
from mmrlhf_jax.training.state import PARTS, TrainState, split_model
from mmrlhf_jax.training.step import loss_and_gradients, reference_outputs, split_rows
from mmrlhf_jax.training.trained import load_trained


@dataclasses.dataclass(frozen=True)
class Response:
    """One response of the batch: what the model says of it, and the numbers that it came with; None = there is none."""

    group: str
    response: int  # its place in the record, from 1
    row: int
    tokens: int
    logprob: float
    reference: float | None
    reward: float | None  # of the model's head; of a policy the stored one

    @property
    def finite(self) -> bool:
        return all(math.isfinite(x) for x in (self.logprob, self.reference, self.reward) if x is not None)

    @property
    def surprise(self) -> float:
        """How far policy and reference are apart per token; without a reference, how unlikely a token is."""
        return abs(self.logprob - (self.reference or 0.0)) / max(self.tokens, 1)


@dataclasses.dataclass(frozen=True)
class Replay:
    step: int  # that the batch is of
    parameters: int  # step whose parameters were used; 0 = the base model's
    figures: dict[str, Any]
    gradient_norms: dict[str, float]  # by part of the model
    responses: list[Response]  # those that are not finite first, then the most surprising


def replay(saved: str, launch: config.Launch, *, step: int | None = None, overrides: Sequence[str] = ()) -> Replay:
    """Loss, gradients and every response of a saved batch, under a checkpoint of its run: by default the newest one from before
    that batch, or the base model where there is none.

    `overrides` are settings other than the run's, to fit other devices. UserError where the file is no saved batch in a run
    directory, the checkpoint is not there, or the mesh cannot share the batch.
    """
    path = epath.Path(saved)
    mesh = make_mesh(launch.mesh.model_dump())
    found = together(lambda: _read(path))
    # The run's own number of pieces, which its directory has, unless `overrides` take it away.
    settle = partial(with_accumulation, launch=launch, axes=mesh.shape)
    together(lambda: settle(config.load_experiment(path.parent / CONFIG_FILE, overrides)))  # before the model is loaded
    trained = load_trained(path.parent, step=step, mesh=mesh, up_to=found.step, overrides=overrides)
    experiment = settle(trained.experiment)
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        graphdef, params, frozen = split_model(trained.model, experiment.trains, experiment.lora)
        task, start = task_of(experiment.objective), None
        if task.reference == "live":
            start = split_model(load_base(experiment, mesh), experiment.trains, experiment.lora)[1]
        state = TrainState(jnp.int32(found.step), params, frozen, opt_state=(), start=start)
        mine = list(own_rows(mesh, len(found.batch.tokens)))
        placed = place(jax.tree.map(lambda x: x[mine], found.batch), mesh)
        compute = jax.jit(partial(_figures, graphdef, experiment, task))
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


def _figures(graphdef: nnx.GraphDef, experiment: config.Experiment, task: Task, state: TrainState, batch: RowBatch):
    """(figures, gradient norms by part, (log-probs, rewards, reference log-probs) per response), as the run's step has them."""
    settings = experiment.batch
    chunk = dict(chunk=settings.logprob_chunk)
    value, metrics, grads = loss_and_gradients(
        graphdef,
        task,
        state,
        batch,
        accumulation=settings.accumulation,
        seed=experiment.run.seed,
        reference=task.reference,
        **chunk,
    )
    norms = {PARTS[name]: optax.tree.norm(part) for name, part in grads.items()}

    def outputs(piece: RowBatch):
        found = forward(nnx.merge(graphdef, state.params, state.frozen), piece, **chunk)
        other = reference_outputs(graphdef, state, piece, task.reference, **chunk)
        return found.logps, found.rewards, piece.reference_logps if other is None else other.logps

    pieces = jax.lax.map(outputs, split_rows(batch, settings.accumulation))
    per_response = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), pieces)  # in the batch's order again
    figures = summary(metrics) | {"loss": value, "grad_norm": optax.tree.norm(grads)}
    return figures, norms, per_response


def _responses(saved: SavedBatch, logps, rewards, reference, *, judges: bool, compares: bool) -> list[Response]:
    """`judges`: the rewards are the model's own, and must be there; `compares`: so must the reference."""
    counts = np.asarray(target_counts(saved.batch.responses, saved.batch.ends.shape[1]))
    found = []
    for at in map(tuple, np.argwhere(saved.batch.response_ids >= 0)):
        reward = float(rewards[at]) if judges else _stored(saved.batch.rewards[at])
        numbers = float(logps[at]), float(reference[at]) if compares else _stored(reference[at]), reward
        found.append(Response(str(saved.groups[at]), int(saved.numbers[at]), int(at[0]), int(counts[at]), *numbers))
    return sorted(found, key=lambda each: (each.finite, -each.surprise if each.finite else 0.0))


def _stored(value: float) -> float | None:
    """A number that came with the batch: NaN stands for none."""
    return None if math.isnan(value) else float(value)


def as_json(found: Replay) -> dict[str, Any]:
    """With None for what is not finite, which JSON cannot say."""
    responses = [dataclasses.asdict(each) | {"finite": each.finite} for each in found.responses]
    return strict_json.with_nulls(dataclasses.asdict(found) | {"responses": responses})


def as_text(found: Replay, most: int) -> str:
    """A page for people; of the responses the `most` telling ones."""
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
