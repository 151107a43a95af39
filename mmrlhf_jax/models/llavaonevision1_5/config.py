"""Sizes of a LLaVA-OneVision-1.5 checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llavaonevision1_5.geometry import RiceGeometry
from mmrlhf_jax.models.patch_config import PatchModelConfig, Processors, geometry_of, tower_sizes
from mmrlhf_jax.models.qwen2 import read_text_config
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.models.stated import Stated

TITLE = "LLaVA-OneVision-1.5"
# The defaults of the vendor's `configuration_llavaonevision1_5.py`.
TEXT_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 5e6,
}
VISION_DEFAULTS = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
    "layer_norm_eps": 1e-5,
    "text_hidden_size": 2560,
}
NORM_EPS = 1e-5  # of the layers' norms in the vendor's code, whatever `layer_norm_eps` says


class LlavaOnevision15Config(PatchModelConfig):
    model_type = "llavaonevision1_5"


def config_from_hf(raw: Mapping[str, Any], processors: Processors, where: str) -> LlavaOnevision15Config:
    """The sizes from a Hugging Face `config.json`, whose file is `where`, and the settings of the processors.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(dict(raw), where)
    types = ("LLaVAOneVision1_5_text", "llavaonevision1_5_text", "llavaonevision1_5", "qwen3")
    text = read_text_config(stated, where, TITLE, defaults=TEXT_DEFAULTS, model_types=types, is_qwen3=True)
    tower = stated.part("vision_config", VISION_DEFAULTS)
    tower.choice("model_type", ("rice_vit",), "rice_vit")
    if tower.positive("layer_norm_eps") != NORM_EPS:
        raise UserError(f"{tower.where}: layer_norm_eps {tower.get('layer_norm_eps')} is not {NORM_EPS}, which the layers have")
    sizes = tower_sizes(tower, processors.images, text, where, activations=("gelu",), outputs="text_hidden_size", frames=1)
    vision = QwenVitConfig(
        intermediate_size=tower.integer("intermediate_size", least=1),
        window=1,
        full_layers=tuple(range(sizes["layers"])),
        norm="layer_norm",
        norm_eps=NORM_EPS,
        gated=False,
        class_token=True,
        **sizes,
    )
    return LlavaOnevision15Config(
        vision=vision,
        text=text,
        geometry=geometry_of(RiceGeometry, vision, processors),
        image_token=stated.integer("image_token_id", 151655, least=0),
        reward_head=stated.get("reward_head"),
    )
