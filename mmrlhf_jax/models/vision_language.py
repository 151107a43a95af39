"""The model class of all families: visual tokens placed into a row of token embeddings, a decoder, and optionally a reward
head."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.decoder import Decoder
from mmrlhf_jax.models.media import Encoded, Media
from mmrlhf_jax.models.reward_head import RewardHead
from mmrlhf_jax.models.taps import weighted_taps
from mmrlhf_jax.sharding.rules import constrain


class VisionLanguage(nnx.Module):
    """A policy; with `config.reward_head` also a reward model, which keeps its language-model head to write critiques.

    A family's class creates its own parts (`make_vision`) and computes the features of a row's media (`visual_features`). Paths
    of parameters begin with these attribute names: `vision` is the tower, `projector` maps its features to the decoder's width.
    """

    def __init__(
        self,
        config: Any,
        *,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        remat: str = "full",
        attention: Backend = "auto",
    ):
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        self.config = config
        self.make_vision(config, remat=remat, attention=attention, rngs=rngs, **kinds)
        self.language = Decoder(config.text, remat=remat, attention=attention, rngs=rngs, **kinds)
        if config.reward_head is not None:
            self.reward_head = RewardHead(config.text.hidden_size, config.reward_head, param_dtype=param_dtype, rngs=rngs)

    @abc.abstractmethod
    def make_vision(self, config: Any, *, remat: str, attention: Backend, rngs: nnx.Rngs, dtype, param_dtype) -> None:
        """Set the attributes `vision`, `projector` and any others that the family has besides the decoder. `Family.parts` says
        for each which part of the model it belongs to."""

    @abc.abstractmethod
    def visual_features(self, media: Media) -> Float[Array, "B F D"]:
        """The features of the rows' media in the order that taps index. D is the decoder's width; with `deepstack` L of the
        language model, each feature has L further ones of this width behind it, for its first L layers."""

    def encoded(self, media: Media) -> Encoded | Media:
        """The media with their features in the place of pixels; media without visual slots as they are."""
        if media.slots.shape[1] == 0:
            return media
        return Encoded(self.visual_features(media), media.slots, media.taps, media.weights)

    def embed(
        self, tokens: Int[Array, "B S"], media: Media | Encoded | None
    ) -> tuple[Float[Array, "B S E"], Float[Array, "L B S E"] | None]:
        """Token embeddings in which visual slots are replaced by visual tokens, and what the first L layers add to these slots
        (0 elsewhere); None if nothing is added."""
        x = self.language.embed(tokens)
        if media is None or media.slots.shape[1] == 0:
            return x, None
        features = media.features if isinstance(media, Encoded) else self.visual_features(media)
        tokens_visual = weighted_taps(features, media.taps, media.weights)
        deep = None
        if self.config.text.deepstack:
            tokens_visual, *features = jnp.split(tokens_visual, 1 + self.config.text.deepstack, axis=-1)
            deep = jnp.stack([_placed(jnp.zeros_like(x), media, values) for values in features])
        return _placed(x, media, tokens_visual), deep

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | Int[Array, "B S 3"],
        visible_until: Int[Array, "B S"],
        media: Media | Encoded | None = None,
    ) -> Float[Array, "B S E"]:
        """Hidden states after the final norm. The caller applies the vocabulary projection to the slots that need it."""
        x, deep = self.embed(tokens, media)
        return self.language(x, positions, visible_until, deep)


def _placed(x: Float[Array, "B S E"], media: Media, values: Float[Array, "B V E"]) -> Float[Array, "B S E"]:
    """`x` with these values in the visual slots."""
    placed = jax.vmap(lambda row, slots, values: row.at[slots].set(values, mode="drop"))(x, media.slots, values)
    return constrain(placed, "batch", "slots", None)
