"""Sizes of a LLaVA-OneVision checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.family import Checkpoint
from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD, check_preprocessing, stated_pixels
from mmrlhf_jax.models.layers import ACTIVATIONS
from mmrlhf_jax.models.llava_onevision import original
from mmrlhf_jax.models.llava_onevision.geometry import PLAIN, VisionGeometry
from mmrlhf_jax.models.qwen2 import read_text_config
from mmrlhf_jax.models.siglip import VisionConfig
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.tower_config import Statistics, tile_tower_sizes
from mmrlhf_jax.models.work import ProjectorWork, TowerWork

TITLE = "LLaVA-OneVision"

SIGLIP = (0.5, 0.5, 0.5)  # mean and standard deviation of pixels without an image processor's file

# Published configs omit values that equal the defaults of transformers' LlavaOnevisionConfig, SiglipVisionConfig, Qwen2Config.
PINPOINTS = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


@dataclasses.dataclass(frozen=True)
class LlavaOnevisionConfig:
    vision: VisionConfig
    text: TextConfig
    geometry: VisionGeometry
    image_token: int
    video_token: int
    projector_activation: str = "gelu"
    projector_bias: bool = True
    reward_head: str | None = None  # None: a policy; otherwise a variant of `models.reward_head`

    model_type: ClassVar[str] = "llava_onevision"

    @property
    def tower_work(self) -> TowerWork:
        return TowerWork.of(self.vision)

    @property
    def projector_work(self) -> ProjectorWork:
        width = self.text.hidden_size
        return ProjectorWork(tokens=self.vision.patches, first=self.vision.hidden_size * width, rest=width**2)


def read_config(checkpoint: Checkpoint) -> LlavaOnevisionConfig:
    """The sizes of the model in a directory, in Hugging Face naming or the original one (`LlavaQwen`).

    The original naming states no sizes of the tower; they are derived from the stored tensors. Raises UserError for a model
    that this project cannot run.
    """
    raw, where = checkpoint.config, checkpoint.where
    if original.is_original(raw):
        raw = original.to_hf(raw, checkpoint.shapes(), where)
    pixels, source = stated_pixels(checkpoint)
    config = config_from_hf(raw, pixels, where, source)
    if pixels is not None:
        _check_preprocessing(pixels, config.geometry, source)
    return config


def config_from_hf(
    raw: Mapping[str, Any], pixels: Mapping[str, Any] | None, where: str, pixels_where: str = ""
) -> LlavaOnevisionConfig:
    """The sizes from a Hugging Face `config.json` and image processor config (None: there is none), whose files are `where` and
    `pixels_where`.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(raw, where)
    processor = Stated({} if pixels is None else pixels, f"{pixels_where or where}: the image processor")
    statistics = (SIGLIP, SIGLIP) if pixels is None else (CLIP_MEAN, CLIP_STD)
    vision = _vision(stated, processor, statistics, where)
    text = read_text_config(stated, where, TITLE)
    if stated.get("vision_feature_select_strategy", "full") != "full":
        raise UserError(f"{where}: vision_feature_select_strategy is not 'full'; a SigLIP tower has no class token to drop")
    aspect = stated.get("vision_aspect_ratio", "anyres_max_9")
    limit = re.fullmatch(r"anyres(?:_max_(\d+))?", aspect) if isinstance(aspect, str) else None
    if limit is None and aspect not in PLAIN:
        known = "'anyres', 'anyres_max_N', " + ", ".join(map(repr, PLAIN))
        raise UserError(f"{where}: vision_aspect_ratio {aspect!r} is not one of {known}")
    pinpoints = stated.pairs("image_grid_pinpoints", PINPOINTS)
    try:
        geometry = VisionGeometry(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            pinpoints=pinpoints,
            max_patches=int(limit[1]) if limit and limit[1] else None,
            anyres=limit is not None,
            plain=aspect if limit is None else "pad",
            video_newline=stated.get("mm_newline_position", "one_token"),
            pad_color=tuple(int(255 * value) for value in vision.image_mean),
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return LlavaOnevisionConfig(
        vision=vision,
        text=text,
        geometry=geometry,
        image_token=_token(stated, "image_token", 151646),
        video_token=_token(stated, "video_token", 151647),
        projector_activation=stated.choice("projector_hidden_act", tuple(ACTIVATIONS), "gelu"),
        projector_bias=stated.truth("multimodal_projector_bias", True),
        reward_head=stated.get("reward_head"),
    )


def _token(stated: Stated, name: str, default: int) -> int:
    """The id of a media token, under its newer key (`_id`) or its older one (`_index`)."""
    key = f"{name}_id" if stated.get(f"{name}_id") is not None else f"{name}_index"
    return stated.integer(key, default, least=0)


def _vision(top: Stated, pixels: Stated, statistics: tuple[Statistics, Statistics], where: str) -> VisionConfig:
    tower = top.part("vision_config", VISION_DEFAULTS)
    if tower.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise UserError(f"{where}: vision_config.model_type is {tower.get('model_type')!r}; this project runs SigLIP towers")
    return VisionConfig(
        **tile_tower_sizes(top, tower, pixels, statistics, where),
        image_size=tower.integer("image_size", least=1),
        patch_size=tower.integer("patch_size"),
        layer_norm_eps=tower.positive("layer_norm_eps", 1e-6),
        activation=tower.choice("hidden_act", tuple(ACTIVATIONS), "gelu_pytorch_tanh"),
    )


def _check_preprocessing(pixels: Mapping[str, Any], geometry: VisionGeometry, where: str) -> None:
    check_preprocessing(pixels, geometry.image_size, where)
    cut = pixels.get("image_grid_pinpoints")
    if not (geometry.anyres and cut):
        return
    if sorted(Stated(pixels, where).pairs("image_grid_pinpoints", ())) != sorted(geometry.pinpoints):
        raise UserError(f"{where}: image_grid_pinpoints of the image processor and of config.json differ; they must agree")
