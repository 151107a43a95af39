"""Reads the keys that the configs of all vision towers have. It imports no jax."""

from __future__ import annotations

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.stated import Stated


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
