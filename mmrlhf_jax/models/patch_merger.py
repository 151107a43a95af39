"""The projector that makes one visual token of the features of a block of patches, which are consecutive.

Reference: transformers `models/qwen2_5_vl/modeling_qwen2_5_vl.py` (`Qwen2_5_VLPatchMerger`),
`models/qwen3_vl/modeling_qwen3_vl.py` (`Qwen3VLVisionPatchMerger`).
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.layers import NORMS, linear
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.sharding.rules import constrain


class PatchMerger(nnx.Module):
    """The features of a block's patches, joined to one visual token: norm, linear, gelu, linear.

    `joined`: the norm is of the joined features; otherwise it is of each patch's own.
    """

    def __init__(self, vision: QwenVitConfig, outputs: int, *, joined: bool = False, dtype, param_dtype, rngs: nnx.Rngs):
        kinds = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        merged = vision.hidden_size * vision.block
        self.norm = NORMS[vision.norm](merged if joined else vision.hidden_size, vision.norm_eps, **kinds)
        self.up = linear(merged, merged, ("embed", "mlp"), bias=True, **kinds)
        self.down = linear(merged, outputs, ("mlp", "embed"), bias=True, **kinds)
        self.joined = joined

    def __call__(self, x: Float[Array, "B N E"]) -> Float[Array, "B U O"]:
        merged = (len(x), -1, self.up.in_features)
        x = self.norm(x.reshape(merged)) if self.joined else self.norm(x).reshape(merged)
        hidden = constrain(self.up(constrain(x, "batch", "slots", None)), "batch", "slots", "act_mlp")
        return constrain(self.down(jax.nn.gelu(hidden, approximate=False)), "batch", "slots", None)
