"""Sizes of a Qwen3-VL checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.patch_config import (
    PatchModelConfig,
    Processors,
    VideoClass,
    geometry_of,
    layer_numbers,
    tower_sizes,
)
from mmrlhf_jax.models.qwen2 import read_text_config
from mmrlhf_jax.models.qwen3_vl.geometry import Qwen3Geometry
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.models.stated import Stated

TITLE = "Qwen3-VL"
# The defaults of transformers' Qwen3VLTextConfig and Qwen3VLVisionConfig, which are not the values of published files.
TEXT_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "rope_theta": 5e5,
}
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "depth": 27,
    "num_heads": 16,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
SECTIONS = (24, 20, 20)  # pairs of dimensions that time, row and column rotate
VIDEOS = VideoClass((131072, 786432), 16, (0.5,) * 3, (0.5,) * 3)  # `video_processing_qwen3_vl.py`; pixels of a whole video


class Qwen3VLConfig(PatchModelConfig):
    model_type = "qwen3_vl"


def config_from_hf(raw: Mapping[str, Any], processors: Processors, where: str) -> Qwen3VLConfig:
    """The sizes from a Hugging Face `config.json`, whose file is `where`, and the settings of the processors.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(dict(raw), where)
    tower = stated.part("vision_config", VISION_DEFAULTS)
    tapped = _tapped(tower)
    text = read_text_config(
        stated,
        where,
        TITLE,
        tied=stated.truth("tie_word_embeddings", False),  # transformers looks at the outer config alone
        defaults=TEXT_DEFAULTS,
        model_types=("qwen3_vl_text", "qwen3_vl"),
        axes=SECTIONS,
        interleaved=True,
        is_qwen3=True,
        deepstack=len(tapped),
    )
    if len(tapped) > text.layers:
        raise UserError(f"{tower.where}: deepstack_visual_indexes has more than the language model's {text.layers} layers")
    vision = _vision(tower, processors.images, text, tapped, where)
    return Qwen3VLConfig(
        vision=vision,
        text=text,
        geometry=geometry_of(Qwen3Geometry, vision, processors, VIDEOS),
        image_token=stated.integer("image_token_id", 151655, least=0),
        reward_head=stated.get("reward_head"),
    )


def _tapped(tower: Stated) -> tuple[int, ...]:
    """The layers whose features go to the language model's first layers."""
    tapped, layers = layer_numbers(tower, "deepstack_visual_indexes"), tower.integer("depth", least=1)
    if not tapped or tapped != sorted({*tapped}) or tapped[-1] >= layers:
        raise UserError(f"{tower.where}: deepstack_visual_indexes must be some of {layers} layers in order, found {tapped}")
    return tuple(tapped)


def _vision(tower: Stated, pixels: Stated, text: TextConfig, tapped: tuple[int, ...], where: str) -> QwenVitConfig:
    sizes = tower_sizes(tower, pixels, text, where, activations=("gelu_pytorch_tanh", "gelu", "silu"))
    positions = tower.integer("num_position_embeddings", least=1)
    if math.isqrt(positions) ** 2 != positions:
        raise UserError(f"{tower.where}: num_position_embeddings {positions} are not those of a square table")
    return QwenVitConfig(
        intermediate_size=tower.integer("intermediate_size", least=1),
        window=1,
        full_layers=tuple(range(sizes["layers"])),
        norm="layer_norm",
        gated=False,
        patch_bias=True,
        table=math.isqrt(positions),
        tapped=tapped,
        **sizes,
    )
