"""Names of Qwen2.5-VL's weights, as in published files (`Qwen/Qwen2.5-VL-*`) and as transformers names its modules."""

from __future__ import annotations

import re

from mmrlhf_jax.models.weight_names import CONVOLUTION_3D, DECODER, LINEAR, NORM, REWARD, Part, Row, WeightNames

# The projector is a module of the tower there, so its prefix comes first.
PARTS = {
    "projector": Part("visual.merger.", None, ("model.visual.merger.",), "model.visual.merger."),
    "vision": Part("visual.", None, ("model.visual.",), "model.visual."),
    "language": Part("model.", None, ("model.language_model.",), "model.language_model."),
    "vocabulary": Part("lm_head.", None, (), "lm_head."),
    "reward": REWARD,
}

ROWS = (
    Row("vision", "patch_embed.proj", "vision.patch", CONVOLUTION_3D),
    Row("vision", "blocks.{}.norm1", "vision.layers.attention_norm", NORM),
    Row("vision", "blocks.{}.attn.qkv[0/3]", "vision.layers.attention.q", LINEAR),
    Row("vision", "blocks.{}.attn.qkv[1/3]", "vision.layers.attention.k", LINEAR),
    Row("vision", "blocks.{}.attn.qkv[2/3]", "vision.layers.attention.v", LINEAR),
    Row("vision", "blocks.{}.attn.proj", "vision.layers.attention.o", LINEAR),
    Row("vision", "blocks.{}.norm2", "vision.layers.mlp_norm", NORM),
    Row("vision", "blocks.{}.mlp.gate_proj", "vision.layers.mlp.gate", LINEAR),
    Row("vision", "blocks.{}.mlp.up_proj", "vision.layers.mlp.up", LINEAR),
    Row("vision", "blocks.{}.mlp.down_proj", "vision.layers.mlp.down", LINEAR),
    Row("projector", "ln_q", "projector.norm", NORM),
    Row("projector", "mlp.0", "projector.up", LINEAR),
    Row("projector", "mlp.2", "projector.down", LINEAR),
    *DECODER,
)

UNUSED = {  # buffers that old releases of transformers write
    "vision": re.compile(r"rotary_pos_emb\.inv_freq"),
    "language": re.compile(r".*rotary_emb\.inv_freq"),
}

NAMES = WeightNames(PARTS, ROWS, UNUSED, wanted={})
