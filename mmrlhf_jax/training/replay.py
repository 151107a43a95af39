"""`mmrlhf replay`: the batch that a run stopped at, once more, with the figures that say where it goes wrong."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.data.pipeline import open_training_examples
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.models.layers import matmul_precision
from mmrlhf_jax.objectives.weighted import summary
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.training.feed import fetch, own_rows, place
from mmrlhf_jax.training.loop import load_base, reference_mode
from mmrlhf_jax.training.objective import Outputs, forward, make_objective, target_counts
from mmrlhf_jax.training.record import as_number, read_batch
from mmrlhf_jax.training.state import PARTS, TrainState, split_model
from mmrlhf_jax.training.step import loss_and_gradients, reference_outputs
from mmrlhf_jax.training.trained import load_trained


@dataclasses.dataclass(frozen=True)
class Response:
    """One response of the batch: what the model says of it, and the numbers that it came with."""

    group: str
    response: int
    row: int
    tokens: int
    logprob: float
    reference: float
    reward: float  # of the model's head; of a policy the stored one

    @property
    def finite(self) -> bool:
        """A reference or a reward may be missing (NaN) where the objective asks for none; what the model says may not."""
        return math.isfinite(self.logprob) and not math.isinf(self.reward) and not math.isinf(self.reference)

    @property
    def surprise(self) -> float:
        """How far policy and reference are apart per token; without a reference, how unlikely a token is."""
        reference = 0.0 if math.isnan(self.reference) else self.reference
        return abs(self.logprob - reference) / max(self.tokens, 1)


@dataclasses.dataclass(frozen=True)
class Replay:
    step: int  # that the batch is of
    parameters: int  # step whose parameters were used; 0 = the base model's
    figures: dict[str, Any]
    gradient_norms: dict[str, float]  # by part of the model
    responses: list[Response]  # those that are not finite first, then the most surprising


def replay(saved: str, launch: config.Launch, *, step: int | None = None) -> Replay:
    """Loss, gradients and every response of a saved batch, under a checkpoint of its run: by default the newest one from before
    that batch, or the base model where there is none.

    UserError where the file is no saved batch in a run directory, or the checkpoint is not there.
    """
    path = epath.Path(saved)
    number, batch = read_batch(path)
    mesh = make_mesh(launch.mesh.model_dump())
    trained = load_trained(path.parent, step=step, mesh=mesh, up_to=number)
    experiment = trained.experiment
    with use_mesh(mesh), matmul_precision(experiment.model.dtype):
        graphdef, params, frozen = split_model(trained.model, experiment.trains, experiment.lora)
        reference = reference_mode(experiment.objective)
        start = None
        if reference == "live":
            start = split_model(load_base(experiment, mesh), experiment.trains, experiment.lora)[1]
        state = TrainState(jnp.int32(number), params, frozen, opt_state=(), start=start)
        mine = list(own_rows(mesh, len(batch.tokens)))
        placed = place(jax.tree.map(lambda x: x[mine], batch), mesh)
        compute = jax.jit(partial(_figures, graphdef, experiment, reference))
        figures, norms, outputs, reference_logps = jax.tree.map(fetch, compute(state, placed))
    reward_model = trained.model.config.reward_head is not None
    rewards = outputs.rewards if reward_model else batch.rewards
    return Replay(
        number,
        trained.step,
        {name: as_number(value) for name, value in figures.items()},
        {name: float(norm) for name, norm in norms.items()},
        _responses(experiment, batch, outputs, reference_logps, rewards),
    )


def _figures(graphdef: nnx.GraphDef, experiment: config.Experiment, reference, state: TrainState, batch: RowBatch):
    """(figures, gradient norms by part, the model's outputs, reference log-probs), as the run's own step has them."""
    settings = experiment.batch
    objective = make_objective(experiment.objective)
    chunk = dict(chunk=settings.logprob_chunk)
    value, metrics, grads = loss_and_gradients(
        graphdef,
        objective,
        state,
        batch,
        accumulation=settings.accumulation,
        seed=experiment.run.seed,
        reference=reference,
        **chunk,
    )
    norms = {PARTS[name]: optax.tree.norm(part) for name, part in grads.items()}
    outputs: Outputs = forward(nnx.merge(graphdef, state.params, state.frozen), batch, **chunk)
    other = reference_outputs(graphdef, state, batch, reference, **chunk)
    figures = summary(metrics) | {"loss": value, "grad_norm": optax.tree.norm(grads)}
    return figures, norms, outputs, batch.reference_logps if other is None else other.logps


def _responses(experiment: config.Experiment, batch: RowBatch, outputs: Outputs, reference, rewards) -> list[Response]:
    examples = open_training_examples(experiment.data, experiment.objective)
    owner = [(record.id, i) for record in examples.records for i in range(len(record.responses))]
    counts = np.asarray(target_counts(batch))
    found = []
    for row, place_in_row in np.argwhere(batch.response_ids >= 0):
        at = row, place_in_row
        group, response = owner[batch.response_ids[at]]
        numbers = outputs.logps[at], reference[at], rewards[at]
        found.append(Response(group, response + 1, int(row), int(counts[at]), *map(float, numbers)))
    return sorted(found, key=lambda each: (each.finite, -each.surprise if each.finite else 0.0))


def as_text(found: Replay, most: int) -> str:
    """A page for people; of the responses the `most` telling ones."""
    model = f"parameters of step {found.parameters}" if found.parameters else "the base model's parameters"
    lines = [f"batch of step {found.step}, {model}"]
    lines += [f"  {name:<28}{_shown(value)}" for name, value in found.figures.items()]
    lines += ["gradient norm by part", *(f"  {name:<28}{norm:.6g}" for name, norm in found.gradient_norms.items())]
    bad = sum(not each.finite for each in found.responses)
    shown = found.responses[:most]
    lines.append(
        f"{len(found.responses)} responses, {bad} not finite; the {len(shown)} that are worst or furthest from the reference"
    )
    lines.append(f"  {'row':>4} {'tokens':>7} {'log-prob':>12} {'reference':>12} {'reward':>10}  group, response")
    for each in shown:
        numbers = f"{each.logprob:>12.5g} {each.reference:>12.5g} {each.reward:>10.4g}"
        mark = "" if each.finite else "  NOT FINITE"
        lines.append(f"  {each.row:>4} {each.tokens:>7} {numbers}  {each.group}, {each.response}{mark}")
    return "\n".join(lines)


def _shown(value: float | list[float]) -> str:
    return f"{value:.6g}" if isinstance(value, float) else " ".join(f"{x:.4g}" for x in value)
