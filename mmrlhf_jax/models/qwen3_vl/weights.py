"""Names of Qwen3-VL's weights, as in published files (`Qwen/Qwen3-VL-*`), whose names are those of transformers' modules."""

from __future__ import annotations

import re

from mmrlhf_jax.models.weight_names import (
    CONVOLUTION_3D,
    DECODER,
    EMBEDDING,
    LINEAR,
    NORM,
    QK_NORMS,
    REWARD,
    Part,
    Row,
    WeightNames,
)

# The projector is a module of the tower there, so its prefix comes first.
PARTS = {
    "projector": Part("model.visual.merger.", None, ("visual.merger.",), "model.visual.merger."),
    "vision": Part("model.visual.", None, ("visual.",), "model.visual."),
    "language": Part("model.language_model.", None, ("language_model.model.",), "model.language_model."),
    "vocabulary": Part("lm_head.", None, ("language_model.lm_head.",), "lm_head."),
    "reward": REWARD,
}

ROWS = (
    Row("vision", "patch_embed.proj", "vision.patch", CONVOLUTION_3D),
    Row("vision", "pos_embed", "vision.table.positions", EMBEDDING),
    Row("vision", "blocks.{}.norm1", "vision.layers.attention_norm", NORM),
    Row("vision", "blocks.{}.attn.qkv[0/3]", "vision.layers.attention.q", LINEAR),
    Row("vision", "blocks.{}.attn.qkv[1/3]", "vision.layers.attention.k", LINEAR),
    Row("vision", "blocks.{}.attn.qkv[2/3]", "vision.layers.attention.v", LINEAR),
    Row("vision", "blocks.{}.attn.proj", "vision.layers.attention.o", LINEAR),
    Row("vision", "blocks.{}.norm2", "vision.layers.mlp_norm", NORM),
    Row("vision", "blocks.{}.mlp.linear_fc1", "vision.layers.mlp.up", LINEAR),
    Row("vision", "blocks.{}.mlp.linear_fc2", "vision.layers.mlp.down", LINEAR),
    Row("vision", "deepstack_merger_list.{}.norm", "deepstack.norm", NORM),
    Row("vision", "deepstack_merger_list.{}.linear_fc1", "deepstack.up", LINEAR),
    Row("vision", "deepstack_merger_list.{}.linear_fc2", "deepstack.down", LINEAR),
    Row("projector", "norm", "projector.norm", NORM),
    Row("projector", "linear_fc1", "projector.up", LINEAR),
    Row("projector", "linear_fc2", "projector.down", LINEAR),
    *DECODER,
    *QK_NORMS,
)

UNUSED = {  # buffers that old releases of transformers write
    "vision": re.compile(r"rotary_pos_emb\.inv_freq"),
    "language": re.compile(r".*rotary_emb\.inv_freq"),
}

NAMES = WeightNames(PARTS, ROWS, UNUSED, wanted={})
