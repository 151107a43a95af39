"""Qwen2.5-VL: a tower of patches, and a projector of one block of patches to one visual token."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.media import Patches
from mmrlhf_jax.models.patch_merger import PatchMerger
from mmrlhf_jax.models.qwen2_5_vl.config import QwenVLConfig
from mmrlhf_jax.models.qwen_vit import QwenVit
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.sharding.rules import constrain


class QwenVL(VisionLanguage):
    def make_vision(self, config: QwenVLConfig, *, remat: str, attention: Backend, rngs: nnx.Rngs, dtype, param_dtype) -> None:
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.vision = QwenVit(config.vision, remat=remat, attention=attention, **kinds)
        self.projector = PatchMerger(config.vision, config.text.hidden_size, **kinds)

    def visual_features(self, media: Patches) -> Float[Array, "B F E"]:
        """One visual token of every block."""
        return constrain(self.projector(self.vision(media)), "batch", None, None)
