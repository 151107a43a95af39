"""The forward pass over pair-expanded rows (`data.unshared`), whose two halves run as two separate rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmrlhf_jax.data.rows import RowBatch, from_names
from mmrlhf_jax.data.unshared import INDEXES, MARKED, PER_PAIR, half_sizes, halved
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.objectives import Outputs


def forward_unshared(model: VisionLanguage, batch: RowBatch, *, chunk: int) -> Outputs:
    """The outputs of `forward` for the same rows, without computing attention between the halves."""
    outputs = forward(model, split_halves(batch, model.config.geometry.features), chunk=chunk)
    rows = len(batch.tokens)
    return jax.tree.map(lambda x: x.reshape(rows, -1), outputs)


def split_halves(batch: RowBatch, features: int) -> RowBatch:
    """Split rows [B, 2n] into [2B, n], with indices relative to each half's start. Pairs, which join both halves, are emptied.

    `features` is how many features the vision tower makes of a tile.
    """
    rows = len(batch.tokens)
    units = batch.media.pixels.shape[1] // 2
    sizes = half_sizes(batch.tokens.shape[1] // 2, batch.ends.shape[1] // 2, units, units * features)

    def halves(name: str, x: jax.Array) -> jax.Array:
        x = x.reshape(2 * rows, x.shape[1] // 2, *x.shape[2:])
        if name not in INDEXES:
            return x
        size = sizes[INDEXES[name]]
        own = x - size * jnp.tile(jnp.arange(2), rows).reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(x == 2 * size, size, own) if name in MARKED else own

    none = {name: getattr(batch, name)[:1, :1] * 0 for name in PER_PAIR}
    per_pair = {name: jnp.broadcast_to(value, (2 * rows, *value.shape[1:])) for name, value in none.items()}
    return from_names({name: halves(name, value) for name, value in halved(batch).items()} | per_pair)
