"""The sizes that all vision towers of tiles have, and how they are read from a config. It imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.stated import Stated

Statistics = tuple[float, ...]  # one number per colour channel


@dataclasses.dataclass(frozen=True)
class TileTower:
    """Sizes of a tower. `image_size` and `patch_size` are in pixels; mean and deviation are per channel, after `rescale`."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    feature_layers: int  # number of layers to run; `vision_feature_layer` -1 means all
    activation: str
    image_mean: Statistics
    image_std: Statistics
    rescale: float = 1 / 255

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.patches_per_side**2


def tile_tower_sizes(
    top: Stated, tower: Stated, pixels: Stated, statistics: tuple[Statistics, Statistics], where: str
) -> dict[str, Any]:
    """The fields of `TileTower` that all families' configs state alike: all but the sides of tile and patch and the activation.

    `top` is the whole config.json at `where`, `tower` its `vision_config`, `pixels` the image processor's settings;
    `statistics` are the mean and the standard deviation of pixels that count if these do not state them. UserError, with the
    key, for sizes that no tower has.
    """
    hidden, heads = width_and_heads(tower, where)
    layers = tower.integer("num_hidden_layers", least=1)
    return {
        "hidden_size": hidden,
        "intermediate_size": tower.integer("intermediate_size", least=1),
        "layers": layers,
        "heads": heads,
        "feature_layers": feature_layers(top, layers, where),
        "image_mean": pixels.colour("image_mean", statistics[0]),
        "image_std": pixels.colour("image_std", statistics[1], positive=True),
        "rescale": pixels.positive("rescale_factor", 1 / 255),
    }


def width_and_heads(tower: Stated, where: str) -> tuple[int, int]:
    """(hidden_size, num_attention_heads). UserError unless the first is a multiple of the second."""
    hidden, heads = tower.integer("hidden_size", least=1), tower.integer("num_attention_heads", least=1)
    if hidden % heads:
        raise UserError(f"{where}: vision_config: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    return hidden, heads


def feature_layers(top: Stated, layers: int, where: str) -> int:
    """The number of the tower's layers to run, so that the last one is `vision_feature_layer`. UserError if it is out of
    range."""
    layer = top.get("vision_feature_layer", -1)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise UserError(f"{where}: vision_feature_layer {layer} is not one number; several layers are not supported")
    count = layer if layer >= 0 else layers + 1 + layer
    if not 0 < count <= layers:
        raise UserError(f"{where}: vision_feature_layer {layer} is outside the tower's {layers} layers")
    return count
