"""The FLOPs that a train step executes, counted from shapes, including rematerialisation, padding and masked attention blocks.

A plan compares this count with that of the compiled program: if the program has many more FLOPs, it computes something twice.
"""

from __future__ import annotations

import dataclasses
from math import prod

from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import round_up
from mmrlhf_jax.models.attention.backends import (
    IMAGES,
    ROWS,
    Products,
    kernel_products,
    kernel_split,
    uses_kernel,
    windows_by_kernel,
)
from mmrlhf_jax.models.attention.visibility import most_pairs
from mmrlhf_jax.models.attention.xla import DENSE_LIMIT, QUERY_BLOCKS, REMAT_LIMIT, segment_block
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.objectives.logprobs import gradient_is_split
from mmrlhf_jax.planning.workload import Workload
from mmrlhf_jax.sharding.rules import axes_in, fit, spec
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.learning import learning_of
from mmrlhf_jax.training.work import Work, useful_flops


@dataclasses.dataclass(frozen=True)
class Executed:
    """Matrix FLOPs of one step on all devices; a multiply-add counts 2.

    `total` is the maximum, comparable with the program's text. The attention kernel skips `skipped` of them, in blocks that the
    workload's masks hide completely. `useful` excludes padding, masked pairs and rematerialisation.
    """

    total: float
    skipped: float
    useful: float


def executed_flops(model: ModelConfig, experiment: config.Experiment, workload: Workload, mesh: Mesh) -> Executed:
    """Count the FLOPs of one train step on all devices. The experiment must set all row sizes and the accumulation."""
    budget, batch = workload.budget, experiment.batch
    chunk = min(batch.logprob_chunk, budget.targets)
    tiles = model.tower_work.computed_tiles(budget.tiles, mesh.shape["context"])
    text = _text_attention(model, experiment, workload, mesh)
    patches = _patch_attention(model, experiment, workload, mesh)
    product = 2 * model.text.layers * model.text.heads * model.text.head_dim
    per_row = (
        _language(model, experiment) * budget.slots
        + text.products * product
        + _vocabulary(model, experiment, mesh) * round_up(budget.targets, chunk)
        + _projector(model, experiment) * tiles
        + _vision(model, experiment, mesh, budget.tiles) * tiles
        + patches.products * 2 * model.tower_work.width
    )
    if model.reward_head in ("tanh", "silu"):
        per_row += 3 * 2 * model.text.hidden_size**2 * budget.responses
    skipped = (text.skipped * product + patches.skipped * 2 * model.tower_work.width) * batch.rows
    useful = useful_flops(_useful_work(workload, batch.rows), model, experiment)
    return Executed(float(per_row * batch.rows), float(skipped), float(useful))


def _useful_work(workload: Workload, rows: int) -> Work:
    used = {name: count * rows for name, count in workload.used.items()}
    seen = workload.seen_tiles * rows
    return Work(used["slots"], workload.visible_pairs * rows, used["targets"], used["tiles"], used["pairs"], seen)


@dataclasses.dataclass(frozen=True)
class AttentionWork:
    """Attention of one row per head and step, summed over devices: matrix products times (query, key) pairs, at most, and those
    of them that a kernel skips because the workload's masks hide their blocks."""

    products: float
    skipped: float


def _text_attention(model: ModelConfig, experiment: config.Experiment, workload: Workload, mesh: Mesh) -> AttentionWork:
    """Two products in the forward pass; in the backward pass four by XLA or seven by the kernels (both of which recompute the
    scores); and the forward products again if layers are rematerialised."""
    text, slots = model.text, workload.budget.slots
    forward, learns = 1 + _references(experiment), learning_of(experiment, model).through_language_model
    keys = experiment.batch.rows // experiment.batch.accumulation, slots, text.kv_heads, text.head_dim
    copies = _kernel_copies(keys, experiment, mesh, ROWS)
    if copies is None:
        again = (experiment.model.remat != "none") + (slots >= REMAT_LIMIT)
        products = 2 * forward + learns * (4 + 2 * again)
        return AttentionWork(_xla_pairs(slots) * _xla_copies(text.heads, mesh) * products, 0.0)
    products = skipped = 0.0
    for part, times in _kernel_times(experiment, mesh, keys, text.heads // text.kv_heads, forward, learns, causal=True):
        count = copies * times * part.count * most_pairs(slots, part.queries, part.keys, causal=True)
        products += count
        skipped += count * (1 - workload.visible_blocks(part.queries, part.keys))
    return AttentionWork(products, skipped)


def _kernel_times(
    experiment: config.Experiment,
    mesh: Mesh,
    keys: tuple[int, int, int, int],
    group: int,
    forward: int,
    learns: bool,
    *,
    causal: bool,
) -> list[tuple[Products, int]]:
    """The kernels' products for keys [B, S, K, D], and how often a step computes them: `forward` times in forward passes, and
    once more where layers are rematerialised."""
    _, slots, _, dim = keys
    again = learns and experiment.model.remat != "none"
    platform, dtype = mesh.devices.flat[0].platform, experiment.model.dtype
    once, back = kernel_products(platform, slots, group, dim, dtype, causal=causal)
    return [(part, forward + again) for part in once] + [(part, int(learns)) for part in back]


def _xla_copies(heads: int, mesh: Mesh) -> int:
    """How many devices compute the same head of a row under XLA: more than one if the devices that share a row do not divide
    the number of heads."""
    axes = axes_in(fit(spec("act_heads"), (heads,), mesh)[0])
    return mesh.shape["tensor"] * mesh.shape["context"] // prod(mesh.shape[axis] for axis in axes)


def _kernel_copies(
    keys: tuple[int, int, int, int], experiment: config.Experiment, mesh: Mesh, places: tuple[str, str]
) -> float | None:
    """How many devices compute the same row and head with the kernel; None if XLA computes the attention."""
    if not uses_kernel(experiment.model.attention, mesh.devices.flat[0].platform, keys[3]):
        return None
    split = kernel_split(keys, mesh, mesh.axis_names, places=places)
    return None if split is None else mesh.size / prod(mesh.shape[name] for axes in split for name in axes)


def _references(experiment: config.Experiment) -> int:
    return task_of(experiment.objective).reference_passes


def _encodings(model: ModelConfig, experiment: config.Experiment) -> int:
    """Forward passes of tower and projector: the reference's as well, unless it shares the policy's features
    (`training.step.with_shared_features`)."""
    return 1 + _references(experiment) * learning_of(experiment, model).through_media


def _language(model: ModelConfig, experiment: config.Experiment) -> float:
    """FLOPs of the language model's layers per slot, without attention. Rematerialising a layer omits its last product, because
    the backward pass does not use its result."""
    text, width = model.text, model.text.heads * model.text.head_dim
    block = text.hidden_size * (2 * width + 2 * text.kv_heads * text.head_dim + 3 * text.intermediate_size)
    learning = learning_of(experiment, model)
    passes_on = learning.through_language_model
    again = block - text.hidden_size * text.intermediate_size if passes_on and experiment.model.remat == "full" else 0
    times = 1 + _references(experiment) + passes_on + ("language_model" in learning.whole)
    return 2 * text.layers * (times * block + again)


def _xla_pairs(slots: int) -> float:
    """The (query, key) pairs of the blocks that `attention.xla` computes in a row."""
    if slots <= DENSE_LIMIT:
        return slots**2
    size = min(max(slots // 4, QUERY_BLOCKS[0]), QUERY_BLOCKS[1])
    return sum((min(start + size, slots) - start) * min(start + size, slots) for start in range(0, slots, size))


def _vocabulary(model: ModelConfig, experiment: config.Experiment, mesh: Mesh) -> float:
    """FLOPs of the vocabulary projection per target: forward, recomputed in the backward pass, and the gradients' products,
    which GPUs compute of two pieces (`objectives.logprobs`)."""
    learning = learning_of(experiment, model)
    pieces = 1 + gradient_is_split(mesh.devices.flat[0].platform, experiment.model.dtype)
    gradients = learning.through_language_model + ("language_model" in learning.whole)
    times = 1 + _references(experiment) + learning.through_language_model + pieces * gradients
    return 2 * model.text.hidden_size * model.text.vocab_size * times


def _projector(model: ModelConfig, experiment: config.Experiment) -> float:
    """FLOPs of the projector per tile. Its first layer computes input gradients only if the vision tower learns."""
    work, learning = model.projector_work, learning_of(experiment, model)
    weights, tower = "projector" in learning.whole, "vision_tower" in learning
    first = work.first * (_encodings(model, experiment) + weights + tower)
    inner = "projector" in learning or tower
    return 2 * work.tokens * (first + work.rest * (_encodings(model, experiment) + weights + inner))


def _vision(model: ModelConfig, experiment: config.Experiment, mesh: Mesh, tiles: int) -> float:
    """FLOPs of the vision tower per tile."""
    tower, slots = model.tower_work, model.tower_work.slots
    products = 2 * (tower.layers * tower.layer_products * slots + tower.embedding_products)
    times, recomputed = _encodings(model, experiment), experiment.model.remat == "full"
    learning = learning_of(experiment, model)
    passes_on = "vision_tower" in learning
    attended = 0.0 if tower.window else _tile_attention(model, experiment, mesh, tiles, times)
    times += passes_on * (1 + ("vision_tower" in learning.whole) + recomputed)
    return times * products + tower.layers * attended * 2 * tower.width


def _tile_attention(model: ModelConfig, experiment: config.Experiment, mesh: Mesh, tiles: int, forward: int) -> float:
    """Attention of one tile per head and layer, in matrix products times pairs of slots. As for text: two products forward;
    backward four by XLA, seven by the kernels."""
    tower, slots = model.tower_work, model.tower_work.slots
    learns, recomputed = "vision_tower" in learning_of(experiment, model), experiment.model.remat == "full"
    keys = experiment.batch.rows // experiment.batch.accumulation * tiles, slots, tower.heads, tower.width // tower.heads
    copies = _kernel_copies(keys, experiment, mesh, IMAGES)
    if copies is None:
        return (2 * forward + learns * (4 + 2 * recomputed)) * slots**2
    parts = _kernel_times(experiment, mesh, keys, 1, forward, learns, causal=False)
    return copies * sum(n * part.count * most_pairs(slots, part.queries, part.keys, causal=False) for part, n in parts)


def _patch_attention(model: ModelConfig, experiment: config.Experiment, workload: Workload, mesh: Mesh) -> AttentionWork:
    """Attention of a row's patches in all layers of a tower with windows, per head; no work for other towers.

    XLA computes every window against three, unless the kernel computes windows as well. In the other layers XLA computes every
    patch against the whole row. The kernels skip most blocks between frames or windows; those that are left are counted from
    the sizes of these, to within a block.
    """
    tower = model.tower_work
    if not tower.window:
        return AttentionWork(0.0, 0.0)
    slots = tower.computed_tiles(workload.budget.tiles, mesh.shape["context"]) * tower.slots
    forward, learns = _encodings(model, experiment), "vision_tower" in learning_of(experiment, model)
    by_xla = 2 * forward + learns * (4 + 2 * (experiment.model.remat == "full"))
    windows, layers = tower.windowed, tower.layers - tower.windowed
    dim, settings = tower.width // tower.heads, experiment.model
    keys = experiment.batch.rows // experiment.batch.accumulation, slots, tower.heads, dim
    copies = _kernel_copies(keys, experiment, mesh, ROWS)
    products = skipped = 0.0
    if copies is None or not windows_by_kernel(settings.attention, mesh.devices.flat[0].platform, dim):
        products = windows * by_xla * _xla_copies(tower.heads, mesh) * 3 * tower.window * slots
        windows = 0
    if copies is None:
        again = 2 * learns * (slots >= REMAT_LIMIT)
        pairs = round_up(slots, segment_block(slots)) * slots
        return AttentionWork(products + layers * (by_xla + again) * _xla_copies(tower.heads, mesh) * pairs, 0.0)
    seen, used = workload.seen_tiles * tower.slots**2, workload.used["tiles"] * tower.slots
    for part, times in _kernel_times(experiment, mesh, keys, 1, forward, learns, causal=False):
        pairs, edges = most_pairs(slots, part.queries, part.keys, causal=False), part.queries + part.keys
        count = copies * times * part.count
        products += (layers + windows) * count * pairs
        skipped += layers * count * max(0.0, pairs - seen - edges * used)
        skipped += windows * count * max(0.0, pairs - (tower.window + edges) * used)
    return AttentionWork(products, skipped)
