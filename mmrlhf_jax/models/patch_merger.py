"""The projector that makes one visual token of the features of a block of patches, which are consecutive.

Reference: transformers `models/qwen2_5_vl/modeling_qwen2_5_vl.py` (`Qwen2_5_VLPatchMerger`).
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.layers import linear, rms_norm
from mmrlhf_jax.models.qwen_vit import NORM_EPS, QwenVitConfig
from mmrlhf_jax.sharding.rules import constrain


class PatchMerger(nnx.Module):
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
