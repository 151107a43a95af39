"""What every model of patches is made of: a tower, and a projector of one block of patches to one visual token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.layers import stack
from mmrlhf_jax.models.media import Patches
from mmrlhf_jax.models.patch_config import PatchModelConfig
from mmrlhf_jax.models.patch_merger import PatchMerger
from mmrlhf_jax.models.qwen_vit import QwenVit
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.sharding.rules import constrain


class PatchModel(VisionLanguage):
    """`deepstack`, if the tower has tapped layers, has a projector for each of them."""

    def make_vision(
        self, config: PatchModelConfig, *, remat: str, attention: Backend, rngs: nnx.Rngs, dtype, param_dtype
    ) -> None:
        kinds = dict(dtype=dtype, param_dtype=param_dtype)
        outputs, tapped = config.text.hidden_size, len(config.vision.tapped)
        self.vision = QwenVit(config.vision, remat=remat, attention=attention, rngs=rngs, **kinds)
        self.projector = PatchMerger(config.vision, outputs, rngs=rngs, **kinds)
        if tapped:
            self.deepstack = stack(
                lambda rngs: PatchMerger(config.vision, outputs, joined=True, rngs=rngs, **kinds), tapped, rngs
            )

    def visual_features(self, media: Patches) -> Float[Array, "B F D"]:
        """One visual token of every block, and behind it what its tapped layers give."""
        x, tapped = self.vision(media)
        features = [self.projector(x)]
        for number, x in enumerate(tapped):
            features.append(jax.tree.map(lambda p, number=number: p[number], self.deepstack)(x))
        return constrain(jnp.concatenate(features, axis=-1) if tapped else features[0], "batch", None, None)
