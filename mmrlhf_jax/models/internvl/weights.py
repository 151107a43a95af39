"""Names of InternVL's weights, in Hugging Face (`OpenGVLab/*-hf`) and original (`OpenGVLab/*`) naming."""

from __future__ import annotations

import re

from mmrlhf_jax.models.weight_names import (
    ARRAY,
    ARRAY_OF_ONE,
    CONVOLUTION,
    DECODER,
    LINEAR,
    NORM,
    REWARD,
    Kind,
    Layout,
    Part,
    Row,
    WeightNames,
)

PARTS = {
    "vision": Part("vision_tower.", "vision_model.", ("model.vision_tower.",), "model.vision_tower."),
    "projector": Part("multi_modal_projector.", "mlp1.", ("model.multi_modal_projector.",), "model.multi_modal_projector."),
    "language": Part("language_model.model.", "language_model.model.", ("model.language_model.",), "model.language_model."),
    "vocabulary": Part("language_model.lm_head.", "language_model.lm_head.", ("lm_head.",), "lm_head."),
    "reward": REWARD,
}

POSITIONS: Kind = {"": ("embedding", Layout.SQUEEZED)}
HF, ORIGINAL = "encoder.layer.{}.", "encoder.layers.{}."

ROWS = (
    Row("vision", "embeddings.patch_embeddings.projection", "vision.patch", CONVOLUTION, "embeddings.patch_embedding"),
    Row("vision", "embeddings.cls_token", "vision.class_token", ARRAY_OF_ONE, "embeddings.class_embedding"),
    Row("vision", "embeddings.position_embeddings", "vision.positions", POSITIONS, "embeddings.position_embedding"),
    Row("vision", f"{HF}layernorm_before", "vision.layers.attention_norm", NORM, f"{ORIGINAL}norm1"),
    Row("vision", f"{HF}attention.q_proj", "vision.layers.attention.q", LINEAR, f"{ORIGINAL}attn.qkv[0/3]"),
    Row("vision", f"{HF}attention.k_proj", "vision.layers.attention.k", LINEAR, f"{ORIGINAL}attn.qkv[1/3]"),
    Row("vision", f"{HF}attention.v_proj", "vision.layers.attention.v", LINEAR, f"{ORIGINAL}attn.qkv[2/3]"),
    Row("vision", f"{HF}attention.q_norm", "vision.layers.attention.q_norm", NORM, f"{ORIGINAL}attn.q_norm"),
    Row("vision", f"{HF}attention.k_norm", "vision.layers.attention.k_norm", NORM, f"{ORIGINAL}attn.k_norm"),
    Row("vision", f"{HF}attention.projection_layer", "vision.layers.attention.o", LINEAR, f"{ORIGINAL}attn.proj"),
    Row("vision", f"{HF}lambda_1", "vision.layers.attention_scale", ARRAY, f"{ORIGINAL}ls1"),
    Row("vision", f"{HF}layernorm_after", "vision.layers.mlp_norm", NORM, f"{ORIGINAL}norm2"),
    Row("vision", f"{HF}mlp.fc1", "vision.layers.up", LINEAR, f"{ORIGINAL}mlp.fc1"),
    Row("vision", f"{HF}mlp.fc2", "vision.layers.down", LINEAR, f"{ORIGINAL}mlp.fc2"),
    Row("vision", f"{HF}lambda_2", "vision.layers.mlp_scale", ARRAY, f"{ORIGINAL}ls2"),
    Row("projector", "layer_norm", "projector.norm", NORM, "0"),
    Row("projector", "linear_1", "projector.up", LINEAR, "1"),
    Row("projector", "linear_2", "projector.down", LINEAR, "3"),
    *DECODER,
)

# A mask token is for pretraining the tower; the buffer is written by old releases of transformers.
UNUSED = {
    "vision": re.compile(r"embeddings\.mask_token"),
    "language": re.compile(r".*rotary_emb\.inv_freq"),
}

NAMES = WeightNames(PARTS, ROWS, UNUSED, wanted={})
