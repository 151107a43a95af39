"""A model whose decoder layers are separate arrays, for programs that run all weights for a few tokens.

Training scans over stacked layers, which compiles fast. Reading one layer of a stack copies it, and when few tokens are
computed, that copy takes as long as their products.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mmrlhf_jax.models.decoder import DecoderLayer
from mmrlhf_jax.models.vision_language import VisionLanguage


class Weights(NamedTuple):
    """A model's parameters; those of each decoder layer apart."""

    rest: nnx.State
    layers: tuple[nnx.State, ...]


class SplitModel:
    """A model in parts. It takes the decoder's layers out of `model` and deletes each stacked array as soon as it is taken
    apart, so that memory never holds two copies. Abstract parameters (`ShapeDtypeStruct`) remain abstract."""

    def __init__(self, model: VisionLanguage):
        self.config = model.config
        self.dtype = model.language.embedding.dtype
        self._layer, stacked = nnx.split(model.language.layers)
        model.language.layers = nnx.data(None)
        self._rest, rest = nnx.split(model)
        count = self.config.text.layers
        leaves = [(path, _apart(variable, count)) for path, variable in nnx.to_flat_state(stacked)]
        layers = tuple(nnx.from_flat_state([(path, each[number]) for path, each in leaves]) for number in range(count))
        self.weights = Weights(rest, layers)

    def whole(self) -> VisionLanguage:
        """The model with its layers stacked again. It takes the weights of this one, which cannot be used any more."""
        weights, self.weights = self.weights, None
        model = nnx.merge(self._rest, weights.rest)
        flat = [dict(nnx.to_flat_state(each)) for each in weights.layers]
        stacked = [(path, _together([each[path] for each in flat])) for path in flat[0]]
        model.language.layers = nnx.merge(self._layer, nnx.from_flat_state(stacked))
        return model

    def merge(self, weights: Weights) -> tuple[VisionLanguage, list[DecoderLayer]]:
        """(the model without its decoder's layers, the layers)."""
        return nnx.merge(self._rest, weights.rest), [nnx.merge(self._layer, each) for each in weights.layers]


def _apart(variable: nnx.Variable, count: int) -> list[nnx.Variable]:
    """One variable per layer of a stacked one."""
    stacked = variable.get_value()
    place = stacked.sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(*place.spec[1:]))
    if isinstance(stacked, jax.ShapeDtypeStruct):
        one = jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype, sharding=place)
        return [variable.replace(one) for _ in range(count)]
    parts = jax.jit(lambda x: [x[number] for number in range(count)], out_shardings=[place] * count)(stacked)
    jax.block_until_ready(parts)
    stacked.delete()
    return [variable.replace(part) for part in parts]


def _together(variables: list[nnx.Variable]) -> nnx.Variable:
    """The stacked variable of those of all layers, which are deleted."""
    parts = [variable.get_value() for variable in variables]
    place = parts[0].sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(None, *place.spec))
    stacked = jax.jit(lambda *each: jnp.stack(each), out_shardings=place)(*parts)
    jax.block_until_ready(stacked)
    for part in parts:
        part.delete()
    return variables[0].replace(stacked)
