"""Cuts tiles of raw pixels into normalised patches, the input of a vision tower."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from mmrlhf_jax.models.tower_config import TileTower


def patches(tiles: UInt8[Array, "N H W 3"], config: TileTower) -> Float[Array, "N P C"]:
    """Normalised patches in raster order, each flattened as (row, column, channel)."""
    n, size, p = tiles.shape[0], config.patch_size, config.patches_per_side
    x = tiles[:, : p * size, : p * size].reshape(n, p, size, p, size, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, p * p, size * size * 3).astype(jnp.float32)
    mean, std = (jnp.tile(jnp.asarray(v, jnp.float32), size * size) for v in (config.image_mean, config.image_std))
    return (x * config.rescale - mean) / std
