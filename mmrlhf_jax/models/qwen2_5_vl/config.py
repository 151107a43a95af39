"""Sizes of a Qwen2.5-VL checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.patch_config import (
    PatchModelConfig,
    Processors,
    geometry_of,
    layer_numbers,
    tower_sizes,
)
from mmrlhf_jax.models.patch_defaults import SECTIONS, TEXT_DEFAULTS
from mmrlhf_jax.models.qwen2 import read_text_config, with_text_config
from mmrlhf_jax.models.qwen2_5_vl.geometry import Qwen25Geometry
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.models.stated import Stated

TITLE = "Qwen2.5-VL"
# The defaults of transformers' class, which are not the values of published files.
VISION_DEFAULTS = {
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 4,
}


class Qwen25VLConfig(PatchModelConfig):
    model_type = "qwen2_5_vl"


def config_from_hf(raw: Mapping[str, Any], processors: Processors, where: str) -> Qwen25VLConfig:
    """The sizes from a Hugging Face `config.json`, whose file is `where`, and the settings of the processors.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(with_text_config(raw), where)
    types = ("qwen2_5_vl_text", "qwen2_5_vl", "qwen2")
    text = read_text_config(stated, where, TITLE, defaults=TEXT_DEFAULTS, model_types=types, axes=SECTIONS)
    tower = stated.part("vision_config", VISION_DEFAULTS)
    vision = _vision(tower, processors.images, text, where)
    seconds = tower.positive("tokens_per_second")
    return Qwen25VLConfig(
        vision=vision,
        text=text,
        geometry=geometry_of(Qwen25Geometry, vision, processors, tokens_per_second=seconds),
        image_token=stated.integer("image_token_id", 151655, least=0),
        reward_head=stated.get("reward_head"),
    )


def _vision(tower: Stated, pixels: Stated, text: TextConfig, where: str) -> QwenVitConfig:
    sizes = tower_sizes(tower, pixels, text, where, activations=("silu",))
    full = layer_numbers(tower, "fullatt_block_indexes")
    merge, patch = sizes["merge"], sizes["patch_size"]
    window = tower.integer("window_size", least=1) // merge // patch
    if not window:
        raise UserError(f"{tower.where}: window_size {tower.get('window_size')} is less than {merge} patches of {patch} pixels")
    return QwenVitConfig(
        intermediate_size=tower.integer("intermediate_size", least=1),
        window=window,
        full_layers=tuple(layer for layer in full if layer < sizes["layers"]),
        **sizes,
    )
