"""InternVL: InternViT, and a projector of 2 x 2 patches to one visual token. Reference: transformers `models/internvl`."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.intern_vit import InternVit
from mmrlhf_jax.models.internvl.config import InternVLConfig
from mmrlhf_jax.models.media import Tiles
from mmrlhf_jax.models.merge_projector import MergeProjector
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.sharding.rules import constrain


class InternVL(VisionLanguage):
    def make_vision(
        self, config: InternVLConfig, *, remat: str, attention: Backend, rngs: nnx.Rngs, dtype, param_dtype
    ) -> None:
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.vision = InternVit(config.vision, remat=remat, attention=attention, **kinds)
        self.projector = MergeProjector(
            config.vision.hidden_size,
            config.text.hidden_size,
            side=config.vision.patches_per_side,
            merge=config.geometry.merge,
            activation=config.projector_activation,
            **kinds,
        )

    def visual_features(self, media: Tiles) -> Float[Array, "B F E"]:
        """The visual tokens of a row's tiles, one tile after the other."""
        tiles = media.tiles
        features = self.projector(self.vision(tiles.reshape(-1, *tiles.shape[2:])))
        return constrain(features.reshape(tiles.shape[0], -1, features.shape[-1]), "batch", None, None)
