"""Qwen2.5-VL: a tower of patches, and a projector of one block of patches to one visual token."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.attention import Backend
from mmrlhf_jax.models.layers import linear, rms_norm
from mmrlhf_jax.models.media import Patches
from mmrlhf_jax.models.qwen2_5_vl.config import QwenVLConfig
from mmrlhf_jax.models.qwen_vit import NORM_EPS, QwenVit, QwenVitConfig
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.sharding.rules import constrain


class Merger(nnx.Module):
    """The features of a block's patches, normed and joined, to one visual token: linear, gelu, linear."""

    def __init__(self, vision: QwenVitConfig, outputs: int, *, dtype, param_dtype, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        merged = vision.hidden_size * vision.block
        self.norm = rms_norm(vision.hidden_size, NORM_EPS, **kinds)
        self.up = linear(merged, merged, ("embed", "mlp"), bias=True, **kinds)
        self.down = linear(merged, outputs, ("mlp", "embed"), bias=True, **kinds)

    def __call__(self, x: Float[Array, "B N E"]) -> Float[Array, "B U O"]:
        x = constrain(self.norm(x).reshape(len(x), -1, self.up.in_features), "batch", "slots", None)
        hidden = constrain(self.up(x), "batch", "slots", "act_mlp")
        return constrain(self.down(jax.nn.gelu(hidden, approximate=False)), "batch", "slots", None)


class QwenVL(VisionLanguage):
    def make_vision(self, config: QwenVLConfig, *, remat: str, attention: Backend, rngs: nnx.Rngs, dtype, param_dtype) -> None:
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.vision = QwenVit(config.vision, remat=remat, attention=attention, **kinds)
        self.projector = Merger(config.vision, config.text.hidden_size, **kinds)

    def visual_features(self, media: Patches) -> Float[Array, "B F E"]:
        """One visual token of every block."""
        return constrain(self.projector(self.vision(media)), "batch", None, None)
