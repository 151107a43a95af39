"""LLaVA-OneVision: SigLIP tower, two-layer projector, a newline. Reference: transformers `models/llava_onevision`.

Which patch features make up a visual token is decided on the host (`vision_plan.py`); the model only runs the tower once
per tile and takes weighted sums, so one compilation serves every image size.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models import parameters
from mmrlhf_jax.models.layers import ACTIVATIONS, linear
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.models.media import Tiles
from mmrlhf_jax.models.siglip import Siglip
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.sharding.rules import constrain


class Projector(nnx.Module):
    def __init__(self, config: LlavaOnevisionConfig, *, dtype, param_dtype, rngs: nnx.Rngs):
        kinds = dict(bias=config.projector_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        text = config.text.hidden_size
        self.up = linear(config.vision.hidden_size, text, (None, "embed"), **kinds)
        self.down = linear(text, text, ("embed", None), **kinds)
        self.activation = config.projector_activation

    def __call__(self, x):
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class LlavaOnevision(VisionLanguage):
    def make_vision(self, config: LlavaOnevisionConfig, *, remat, attention, rngs, dtype, param_dtype) -> None:
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        self.vision = Siglip(config.vision, remat=remat, attention=attention, rngs=rngs, **kinds)
        self.projector = Projector(config, rngs=rngs, **kinds)
        self.newline = parameters.vector(
            nnx.initializers.normal(config.text.hidden_size**-0.5)(rngs.params(), (config.text.hidden_size,), param_dtype)
        )

    def visual_features(self, media: Tiles) -> Float[Array, "B F E"]:
        """Projected patch features of a row's tiles and, last, the newline: F = T * P + 1."""
        tiles, batch = media.tiles, media.tiles.shape[0]
        features = self.projector(self.vision(tiles.reshape(-1, *tiles.shape[2:])))
        features = features.reshape(batch, -1, features.shape[-1])
        newline = jnp.broadcast_to(parameters.used(self.newline, features.dtype), (batch, 1, features.shape[-1]))
        newline = newline.astype(features.dtype)
        return constrain(jnp.concatenate([features, newline], axis=1), "batch", None, None)
