"""What a train step computes, counted from shapes: recomputation, padding and blocks above the diagonal included.

The analytic side of a plan: a compiled program that counts much more does work twice that it should not.
"""

from __future__ import annotations

from mmrlhf_jax import config
from mmrlhf_jax.models.attention.xla import DENSE_LIMIT, QUERY_BLOCKS, REMAT_LIMIT
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.sharding.workload import Workload
from mmrlhf_jax.training.work import Work, useful_flops


def executed_flops(model: LlavaOnevisionConfig, experiment: config.Experiment, workload: Workload) -> tuple[float, float]:
    """(executed, useful) matrix FLOPs of one step on all devices. A multiply-add counts 2."""
    budget, batch = workload.budget, experiment.batch
    chunk = min(batch.logprob_chunk, budget.targets)
    per_row = (
        _language(model, experiment) * budget.slots
        + _attention(model, experiment) * _computed_pairs(budget.slots)
        + _vocabulary(model, experiment) * (-(-budget.targets // chunk) * chunk)
        + _projector(model, experiment) * budget.tiles
        + _vision(model, experiment) * budget.tiles
    )
    if model.reward_head in ("tanh", "silu"):
        per_row += 3 * 2 * model.text.hidden_size**2 * budget.responses
    return float(per_row * batch.rows), useful_flops(_useful_work(workload, batch.rows), model, experiment)


def _useful_work(workload: Workload, rows: int) -> Work:
    used = {name: count * rows for name, count in workload.used.items()}
    group = used["slots"] * workload.rows / (workload.groups * rows)  # tokens of an average group
    attention = used["slots"] * group / 2
    return Work(used["slots"], attention, used["targets"], used["tiles"], used["pairs"])


def _learns(experiment: config.Experiment, part: str) -> bool:
    """As a whole: not through adapters."""
    adapted = experiment.lora.parts if experiment.lora else ()
    return getattr(experiment.trains, part) and part not in adapted


def _passes_on(experiment: config.Experiment) -> bool:
    """Whether gradients flow through the language model."""
    trains = experiment.trains
    return trains.projector or trains.newline or trains.language_model or trains.vision_tower


def _references(experiment: config.Experiment) -> int:
    objective = experiment.objective
    return int(isinstance(objective, config.Preference) and objective.reference != "cached")


def _language(model: LlavaOnevisionConfig, experiment: config.Experiment) -> float:
    """Per slot, without attention. Recomputing a layer leaves out its last product, whose result nothing asks for."""
    text, width = model.text, model.text.heads * model.text.head_dim
    block = text.hidden_size * (2 * width + 2 * text.kv_heads * text.head_dim + 3 * text.intermediate_size)
    passes_on = _passes_on(experiment)
    again = block - text.hidden_size * text.intermediate_size if passes_on and experiment.model.remat == "full" else 0
    times = 1 + _references(experiment) + passes_on + _learns(experiment, "language_model")
    return 2 * text.layers * (times * block + again)


def _attention(model: LlavaOnevisionConfig, experiment: config.Experiment) -> float:
    """Per computed (query, key) pair: two products forward, four backward, and the forward ones of every recomputation."""
    product = 2 * model.text.layers * model.text.heads * model.text.head_dim
    products = 2 * (1 + _references(experiment))
    if _passes_on(experiment):
        blocks_again = experiment.batch.slots >= REMAT_LIMIT
        products += 4 + 2 * (experiment.model.remat != "none") + 2 * blocks_again
    return product * products


def _computed_pairs(slots: int) -> float:
    """Queries times keys of the blocks that `models.attention` computes in a row."""
    if slots <= DENSE_LIMIT:
        return slots**2
    size = min(max(slots // 4, QUERY_BLOCKS[0]), QUERY_BLOCKS[1])
    return sum((min(start + size, slots) - start) * min(start + size, slots) for start in range(0, slots, size))


def _vocabulary(model: LlavaOnevisionConfig, experiment: config.Experiment) -> float:
    """Per target: forward, and backward once more before its two products."""
    times = 1 + _references(experiment) + 2 * _passes_on(experiment) + _learns(experiment, "language_model")
    return 2 * model.text.hidden_size * model.text.vocab_size * times


def _projector(model: LlavaOnevisionConfig, experiment: config.Experiment) -> float:
    """Per tile. Its first layer passes gradients on only to a tower that learns."""
    width, patches = model.text.hidden_size, model.vision.patches
    weights, tower = _learns(experiment, "projector"), experiment.trains.vision_tower
    first = model.vision.hidden_size * width * (1 + _references(experiment) + weights + tower)
    inner = experiment.trains.projector or tower
    return 2 * patches * (first + width**2 * (1 + _references(experiment) + weights + inner))


def _vision(model: LlavaOnevisionConfig, experiment: config.Experiment) -> float:
    """Per tile."""
    tower = model.vision
    d, p = tower.hidden_size, tower.patches
    layer = 2 * (4 * d * d + 2 * d * tower.intermediate_size) * p + 4 * d * p * p
    forward = tower.feature_layers * layer + 2 * 3 * tower.patch_size**2 * d * p
    times = 1 + _references(experiment)
    if experiment.trains.vision_tower:
        times += 1 + _learns(experiment, "vision_tower") + (experiment.model.remat == "full")
    return times * forward
