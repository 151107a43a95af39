"""Sizes of a LLaVA-OneVision-1.5 checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.models.family import Checkpoint
from mmrlhf_jax.models.image_processor import stated_pixels
from mmrlhf_jax.models.llavaonevision1_5.geometry import RiceGeometry
from mmrlhf_jax.models.patch_config import PatchModelConfig, check_patches, geometry_of, image_processor, tower_sizes
from mmrlhf_jax.models.qwen2 import read_text_config
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.models.stated import Stated

TITLE = "LLaVA-OneVision-1.5"
# Sizes must be stated; transformers has no class whose defaults these could have.
TEXT_DEFAULTS = {"rope_theta": None}
VISION_DEFAULTS = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 1, "layer_norm_eps": 1e-5}
PUBLISHED_PIXELS = {"min_pixels": 3136, "max_pixels": 12845056}


class LlavaOnevision15Config(PatchModelConfig):
    model_type = "llavaonevision1_5"


def read_config(checkpoint: Checkpoint) -> LlavaOnevision15Config:
    """Sizes of the model in a directory. Raises UserError for a model that this project cannot run."""
    pixels, source = stated_pixels(checkpoint)
    return config_from_hf(checkpoint.config, pixels, checkpoint.where, source)


def config_from_hf(
    raw: Mapping[str, Any], pixels: Mapping[str, Any] | None, where: str, pixels_where: str = ""
) -> LlavaOnevision15Config:
    """The sizes from a Hugging Face `config.json` and image processor config (None: there is none), whose files are `where` and
    `pixels_where`.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(dict(raw), where)
    processor = image_processor(pixels, PUBLISHED_PIXELS, pixels_where or where)
    types = ("LLaVAOneVision1_5_text", "llavaonevision1_5_text", "llavaonevision1_5", "qwen3")
    text = read_text_config(stated, where, TITLE, defaults=TEXT_DEFAULTS, model_types=types, is_qwen3=True)
    tower = stated.part("vision_config", VISION_DEFAULTS)
    tower.choice("model_type", ("rice_vit",), "rice_vit")
    sizes = tower_sizes(tower, processor, text, where, activations=("gelu",), outputs="text_hidden_size", frames=1)
    vision = QwenVitConfig(
        intermediate_size=tower.integer("intermediate_size", least=1),
        window=1,
        full_layers=tuple(range(sizes["layers"])),
        norm="layer_norm",
        norm_eps=tower.positive("layer_norm_eps"),
        gated=False,
        class_token=True,
        **sizes,
    )
    if pixels is not None:
        check_patches(processor, vision)
    return LlavaOnevision15Config(
        vision=vision,
        text=text,
        geometry=geometry_of(RiceGeometry, vision, processor),
        image_token=stated.integer("image_token_id", 151655, least=0),
        reward_head=stated.get("reward_head"),
    )
