"""Cuts tiles of raw pixels into normalised patches, the input of a vision tower."""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


class Pixels(Protocol):
    """The part of a tower's config about pixels. Sizes are in pixels; mean and deviation are per channel, after `rescale`."""

    patch_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    rescale: float

    @property
    def patches_per_side(self) -> int: ...


def patches(tiles: UInt8[Array, "N H W 3"], config: Pixels) -> Float[Array, "N P C"]:
    """Normalised patches in raster order, each flattened as (row, column, channel)."""
    n, size, p = tiles.shape[0], config.patch_size, config.patches_per_side
    x = tiles[:, : p * size, : p * size].reshape(n, p, size, p, size, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, p * p, size * size * 3).astype(jnp.float32)
    mean, std = (jnp.tile(jnp.asarray(v, jnp.float32), size * size) for v in (config.image_mean, config.image_std))
    return (x * config.rescale - mean) / std
