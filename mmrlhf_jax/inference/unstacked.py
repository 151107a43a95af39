"""A model in two forms: whole, for passes over rows, and with the decoder's layers apart, for generation.

Training and scoring scan over stacked layers, which compiles fast. Reading one layer of a stack copies it, and where few tokens
are computed at a time, that copy takes as long as their products.
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


class TwoForms:
    """One model, of which only one form is in memory: asking for the other converts it, parameter by parameter, and deletes
    the first. It owns the arrays of `model`. Abstract parameters (`ShapeDtypeStruct`) remain abstract."""

    def __init__(self, model: VisionLanguage):
        self.config = model.config
        self.dtype = model.language.embedding.dtype
        self._whole: VisionLanguage | None = nnx.merge(*nnx.split(model))  # a shell of its own around the same arrays
        self._apart: Weights | None = None
        shell = nnx.merge(*nnx.split(model))
        self._layer = nnx.graphdef(shell.language.layers)
        shell.language.layers = nnx.data(None)
        self._rest = nnx.graphdef(shell)

    def apart(self) -> Weights:
        """The parameters with the decoder's layers apart."""
        if self._apart is None:
            model, self._whole = self._whole, None
            stacked, count = nnx.state(model.language.layers), self.config.text.layers
            model.language.layers = nnx.data(None)
            leaves = [(path, _unstack(variable, count)) for path, variable in nnx.to_flat_state(stacked)]
            layers = tuple(nnx.from_flat_state([(path, each[number]) for path, each in leaves]) for number in range(count))
            self._apart = Weights(nnx.state(model), layers)
        return self._apart

    def whole(self) -> VisionLanguage:
        """The model with stacked layers."""
        if self._whole is None:
            weights, self._apart = self._apart, None
            model = nnx.merge(self._rest, weights.rest)
            flat = [dict(nnx.to_flat_state(each)) for each in weights.layers]
            stacked = [(path, _stack([each[path] for each in flat])) for path in flat[0]]
            model.language.layers = nnx.merge(self._layer, nnx.from_flat_state(stacked))
            self._whole = model
        return self._whole

    def merge(self, weights: Weights) -> tuple[VisionLanguage, list[DecoderLayer]]:
        """(the model without its decoder's layers, the layers), inside a program that has the weights as argument."""
        return nnx.merge(self._rest, weights.rest), [nnx.merge(self._layer, each) for each in weights.layers]


def _unstack(variable: nnx.Variable, count: int) -> list[nnx.Variable]:
    """One variable per layer of a stacked one, whose array is deleted."""
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


def _stack(variables: list[nnx.Variable]) -> nnx.Variable:
    """The stacked variable of those of all layers, whose arrays are deleted."""
    parts = [variable.get_value() for variable in variables]
    place = parts[0].sharding
    if isinstance(place, NamedSharding):
        place = NamedSharding(place.mesh, PartitionSpec(None, *place.spec))
    stacked = jax.jit(lambda *each: jnp.stack(each), out_shardings=place)(*parts)
    jax.block_until_ready(stacked)
    for part in parts:
        part.delete()
    return variables[0].replace(stacked)
