"""Sizes of a Qwen2-VL checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.models.patch_config import PatchModelConfig, Processors, geometry_of, tower_sizes
from mmrlhf_jax.models.patch_defaults import SECTIONS, TEXT_DEFAULTS
from mmrlhf_jax.models.qwen2 import read_text_config, with_text_config
from mmrlhf_jax.models.qwen2_vl.geometry import Qwen2Geometry
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.models.stated import Stated

TITLE = "Qwen2-VL"
# The defaults of transformers' class, which are not the values of published files.
VISION_DEFAULTS = {
    "embed_dim": 1280,
    "hidden_size": 3584,
    "mlp_ratio": 4,
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


class Qwen2VLConfig(PatchModelConfig):
    model_type = "qwen2_vl"


def config_from_hf(raw: Mapping[str, Any], processors: Processors, where: str) -> Qwen2VLConfig:
    """The sizes from a Hugging Face `config.json`, whose file is `where`, and the settings of the processors.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(with_text_config(raw), where)
    types = ("qwen2_vl_text", "qwen2_vl", "qwen2")
    text = read_text_config(stated, where, TITLE, defaults=TEXT_DEFAULTS, model_types=types, axes=SECTIONS)
    tower = stated.part("vision_config", VISION_DEFAULTS)
    # In this family's files `hidden_size` is what the projector makes of `embed_dim`, the tower's width.
    activations = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu")
    sizes = tower_sizes(
        tower, processors.images, text, where, activations=activations, width="embed_dim", outputs="hidden_size"
    )
    vision = QwenVitConfig(
        intermediate_size=sizes["hidden_size"] * tower.integer("mlp_ratio", least=1),
        window=1,
        full_layers=tuple(range(sizes["layers"])),
        norm="layer_norm",
        gated=False,
        **sizes,
    )
    return Qwen2VLConfig(
        vision=vision,
        text=text,
        geometry=geometry_of(Qwen2Geometry, vision, processors),
        image_token=stated.integer("image_token_id", 151655, least=0),
        reward_head=stated.get("reward_head"),
    )
