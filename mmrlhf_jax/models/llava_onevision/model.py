"""LLaVA-OneVision: SigLIP tower, two-layer projector, Qwen2. Reference: transformers `models/llava_onevision`.

Which patch features make up a visual token is decided on the host (`vision_plan.py`); the model only runs the tower once
per tile and takes weighted sums, so one compilation serves every image size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from mmrlhf_jax.models import parameters
from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.layers import linear
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.models.qwen2 import Qwen2
from mmrlhf_jax.models.reward_head import RewardHead
from mmrlhf_jax.models.siglip import ACTIVATIONS, Siglip
from mmrlhf_jax.sharding.rules import constrain


class Visual(NamedTuple):
    """What the device needs to place visual tokens in B rows of S slots.

    `slots[b, v] = S` marks an unused visual token. Taps index a row's [T * P + 1] features; the last one is the newline.
    """

    tiles: UInt8[Array, "B T H W 3"]
    slots: Int[Array, "B V"]
    taps: Int[Array, "B V 4"]
    weights: Float[Array, "B V 4"]


class Projector(nnx.Module):
    def __init__(self, config: LlavaOnevisionConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        kinds = dict(bias=config.projector_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        text = config.text.hidden_size
        self.up = linear(config.vision.hidden_size, text, (None, "embed"), **kinds)
        self.down = linear(text, text, ("embed", None), **kinds)
        self.activation = config.projector_activation

    def __call__(self, x):
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class LlavaOnevision(nnx.Module):
    """A policy; with `config.reward_head` also a reward model (the language-model head stays: it writes the critique)."""

    def __init__(
        self,
        config: LlavaOnevisionConfig,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat: str = "full",
        attention: Backend = "auto",
    ):
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        self.config = config
        self.vision = Siglip(config.vision, remat=remat, attention=attention, rngs=rngs, **kinds)
        self.projector = Projector(config, rngs=rngs, **kinds)
        self.newline = nnx.Param(
            nnx.initializers.normal(config.text.hidden_size**-0.5)(rngs.params(), (config.text.hidden_size,), param_dtype)
        )
        self.language = Qwen2(config.text, remat=remat, attention=attention, rngs=rngs, **kinds)
        if config.reward_head is not None:
            self.reward_head = RewardHead(config.text.hidden_size, config.reward_head, param_dtype=param_dtype, rngs=rngs)

    def visual_features(self, tiles: UInt8[Array, "B T H W 3"]) -> Float[Array, "B F E"]:
        """Projected patch features of a row's tiles and, last, the newline: F = T * P + 1."""
        batch = tiles.shape[0]
        features = self.projector(self.vision(tiles.reshape(-1, *tiles.shape[2:])))
        features = features.reshape(batch, -1, features.shape[-1])
        newline = jnp.broadcast_to(parameters.used(self.newline, features.dtype), (batch, 1, features.shape[-1]))
        newline = newline.astype(features.dtype)
        return constrain(jnp.concatenate([features, newline], axis=1), "batch", None, None)

    def embed(self, tokens: Int[Array, "B S"], visual: Visual | None) -> Float[Array, "B S E"]:
        """Token embeddings with the visual tokens put into their slots."""
        x = self.language.embed(tokens)
        if visual is None or visual.slots.shape[1] == 0:
            return x
        tokens_visual = weighted_taps(self.visual_features(visual.tiles), visual.taps, visual.weights)
        placed = jax.vmap(lambda row, slots, values: row.at[slots].set(values, mode="drop"))(x, visual.slots, tokens_visual)
        return constrain(placed, "batch", "slots", None)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        visible_until: Int[Array, "B S"],
        visual: Visual | None = None,
    ) -> Float[Array, "B S E"]:
        """Hidden states after the final norm; the vocabulary projection is the caller's, for the slots that need it."""
        return self.language(self.embed(tokens, visual), positions, visible_until)


@jax.custom_vjp
def weighted_taps(
    features: Float[Array, "B F E"], taps: Int[Array, "B V 4"], weights: Float[Array, "B V 4"]
) -> Float[Array, "B V E"]:
    """Sum over the taps of weight * feature, one tap at a time so that no [B, V, 4, E] array exists."""

    def of_row(features, taps, weights):
        total = jnp.zeros((taps.shape[0], features.shape[1]), features.dtype)
        for i in range(taps.shape[1]):
            total += weights[:, i, None].astype(features.dtype) * features[taps[:, i]]
        return total

    return jax.vmap(of_row)(features, taps, weights)


def _taps_forward(features, taps, weights):
    # The empty array says the dtype and the count of the features.
    return weighted_taps(features, taps, weights), (features[..., :0], taps, weights)


def _taps_backward(kept, cotangent):
    """That of the features alone, summed in float32: the newline ends hundreds of lines."""
    like, taps, weights = kept

    def of_row(taps, weights, cotangent):
        total = jnp.zeros((like.shape[1], cotangent.shape[1]), jnp.float32)
        for i in range(taps.shape[1]):
            total = total.at[taps[:, i]].add(weights[:, i, None] * cotangent.astype(jnp.float32))
        return total.astype(like.dtype)

    return jax.vmap(of_row)(taps, weights, cotangent), None, None


weighted_taps.defvjp(_taps_forward, _taps_backward)
