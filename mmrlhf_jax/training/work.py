"""Useful work of a batch, in counts and FLOPs: without padding, masked attention and rematerialisation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import CHIPS
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.media import Patches
from mmrlhf_jax.training.learning import learning_of

# Dense bfloat16 peak of one device in FLOP/s, by prefix of jax's `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {"TPU v4": 275e12, "TPU v5e": CHIPS["v5e"].flops, "TPU v6e": CHIPS["v6e"].flops}
# Cards that are slower or faster than the one whose name theirs begins with; the first prefix that fits counts.
PEAK_FLOPS |= {"NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": 835e12, "NVIDIA H200 NVL": 835e12}
PEAK_FLOPS |= {"NVIDIA L40S": CHIPS["l40s"].flops, "NVIDIA L40": 181e12}
PEAK_FLOPS |= {chip.kind: chip.flops for chip in CHIPS.values()}  # "TPU v5 lite" comes before "TPU v5"


class Work(NamedTuple):
    """Counts over a batch, float32[] on the device, where they may be rounded."""

    tokens: jax.Array  # slots that hold a token, visual ones included
    attention: jax.Array  # unmasked (query, key) pairs, per head and layer
    targets: jax.Array  # hidden states that are multiplied with the vocabulary matrix
    tiles: jax.Array  # tiles, or blocks of patches, that go through the vision tower
    pairs: jax.Array  # strict preference pairs (no ties)
    seen: jax.Array | None = None  # pairs of tiles that see each other in the vision tower; None: every tile sees itself alone


def batch_work(batch: RowBatch, features: int) -> Work:
    """Counts of a row batch; `features` is how many features the model makes of a tile.

    Groups fill a row from its first slot on, and tiles likewise, so the last response's end and the last tap give the number of
    used slots and tiles.
    """
    slots, count = batch.tokens.shape[1], batch.ends.shape[1]
    used = jnp.max(jnp.where(batch.ends < slots, batch.ends + 1, 0), axis=1)
    positions = jnp.arange(slots)
    visible = jnp.where(positions < used[:, None], batch.visible_until - positions, 0)
    newline = batch.media.pixels.shape[1] * features
    taps = jnp.where((batch.media.weights != 0) & (batch.media.taps < newline), batch.media.taps, -features)
    tiles = jnp.max(taps // features + 1, axis=(1, 2), initial=0)
    sums = [used, visible, batch.responses < count, tiles, batch.pair_weights > 0]
    if isinstance(batch.media, Patches):
        # Of the blocks of a frame of n, the distances to its end sum to n (n + 1) / 2.
        number = jnp.arange(batch.media.frames.shape[1])
        distances = 2 * (batch.media.frames - number) - 1
        sums.append(jnp.where(number < tiles[:, None], distances, 0).astype(jnp.float32))
    return Work(*(jnp.sum(x, dtype=jnp.float32) for x in sums))


def useful_flops(work: Work, model: ModelConfig, experiment: config.Experiment | None = None) -> float:
    """FLOPs of one training step on that work; without an `experiment`, of a forward pass. A multiply-add counts 2.

    A fully trained part counts three times its forward pass; a part that only passes gradients on, or learns through adapters
    (whose own FLOPs are not counted), twice; a part that no gradient reaches, once. Norms, softmax and the reward head are left
    out.
    """
    text = model.text
    attention_width = text.heads * text.head_dim
    block = text.hidden_size * (2 * attention_width + 2 * text.kv_heads * text.head_dim + 3 * text.intermediate_size)
    times = _passes(experiment, model)
    return float(
        times["language"] * 2 * text.layers * block * work.tokens
        + times["attention"] * 4 * text.layers * attention_width * work.attention
        + times["language"] * 2 * text.hidden_size * text.vocab_size * work.targets
        + times["projector"] * model.projector_work.forward_flops() * work.tiles
        + times["vision"] * model.tower_work.forward_flops(work.tiles, work.tiles if work.seen is None else work.seen)
    )


def _passes(experiment: config.Experiment | None, model: ModelConfig) -> dict[str, int]:
    """How many times each part's forward FLOPs are done: forward, gradient of its inputs, gradient of its weights."""
    if experiment is None:
        return dict.fromkeys(("language", "attention", "projector", "vision"), 1)
    learning = learning_of(experiment, model)
    projector_passes_on = "projector" in learning or "vision_tower" in learning
    language_passes_on = learning.through_language_model
    return {
        "language": 1 + language_passes_on + ("language_model" in learning.whole),
        "attention": 3 if language_passes_on else 1,
        "projector": 1 + projector_passes_on + ("projector" in learning.whole),
        "vision": 1 + ("vision_tower" in learning) + ("vision_tower" in learning.whole),
    }


def peak_flops(devices: list | None = None) -> float | None:
    """Peak matrix FLOP/s of all devices together; None if it is not known (CPUs)."""
    devices = jax.devices() if devices is None else devices
    known = next((peak for name, peak in PEAK_FLOPS.items() if devices[0].device_kind.startswith(name)), None)
    return None if known is None else known * len(devices)
