"""Names of LLaVA-OneVision's weights, in Hugging Face (`llava-hf`) and original (`lmms-lab`) naming."""

from __future__ import annotations

import re

from mmrlhf_jax.models.weight_names import (
    ARRAY,
    CONVOLUTION,
    DECODER,
    EMBEDDING,
    LINEAR,
    NORM,
    REWARD,
    Part,
    Row,
    WeightNames,
)

PARTS = {
    "vision": Part(
        "vision_tower.vision_model.",
        "model.vision_tower.vision_tower.vision_model.",
        ("vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower."),
        "model.vision_tower.",
    ),
    "projector up": Part(
        "multi_modal_projector.linear_1.",
        "model.mm_projector.0.",
        ("model.multi_modal_projector.linear_1.",),
        "model.multi_modal_projector.linear_1.",
    ),
    "projector down": Part(
        "multi_modal_projector.linear_2.",
        "model.mm_projector.2.",
        ("model.multi_modal_projector.linear_2.",),
        "model.multi_modal_projector.linear_2.",
    ),
    "newline": Part("image_newline", "model.image_newline"),
    "language": Part("language_model.model.", "model.", ("model.language_model.",), "model.language_model."),
    "vocabulary": Part("language_model.lm_head.", "lm_head.", module="lm_head."),
    "reward": REWARD,
}

ROWS = (
    Row("vision", "embeddings.patch_embedding", "vision.patch", CONVOLUTION),
    Row("vision", "embeddings.position_embedding", "vision.positions", EMBEDDING),
    Row("vision", "encoder.layers.{}.layer_norm1", "vision.layers.attention_norm", NORM),
    Row("vision", "encoder.layers.{}.self_attn.q_proj", "vision.layers.attention.q", LINEAR),
    Row("vision", "encoder.layers.{}.self_attn.k_proj", "vision.layers.attention.k", LINEAR),
    Row("vision", "encoder.layers.{}.self_attn.v_proj", "vision.layers.attention.v", LINEAR),
    Row("vision", "encoder.layers.{}.self_attn.out_proj", "vision.layers.attention.o", LINEAR),
    Row("vision", "encoder.layers.{}.layer_norm2", "vision.layers.mlp_norm", NORM),
    Row("vision", "encoder.layers.{}.mlp.fc1", "vision.layers.up", LINEAR),
    Row("vision", "encoder.layers.{}.mlp.fc2", "vision.layers.down", LINEAR),
    Row("projector up", "", "projector.up", LINEAR),
    Row("projector down", "", "projector.down", LINEAR),
    Row("newline", "", "newline", ARRAY),
    *DECODER,
)

UNUSED = {
    "vision": re.compile(r"post_layernorm\..*|head\..*|embeddings\.position_ids"),
    "language": re.compile(r".*rotary_emb\.inv_freq"),
}

# transformers' tower has a norm behind its last layer, whose result LLaVA-OneVision never uses.
WANTED = {("vision", "post_layernorm.weight"): 1.0, ("vision", "post_layernorm.bias"): 0.0}

NAMES = WeightNames(PARTS, ROWS, UNUSED, WANTED)
