"""Sizes of an InternVL checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.family import Checkpoint
from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD, check_preprocessing, stated_pixels
from mmrlhf_jax.models.intern_vit import NORMS, InternVitConfig
from mmrlhf_jax.models.internvl import original
from mmrlhf_jax.models.internvl.geometry import TileGeometry
from mmrlhf_jax.models.layers import ACTIVATIONS
from mmrlhf_jax.models.qwen2 import read_text_config
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.tower_config import Statistics, tile_tower_sizes
from mmrlhf_jax.models.work import ProjectorWork, TowerWork

TITLE = "InternVL"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # constants in the original code
# The default of transformers' GotOcr2ImageProcessor for a file that does not state it.
PIXEL_DEFAULTS = {"size": {"height": 384, "width": 384}}
VISION_DEFAULTS = {  # the defaults of transformers' InternVLVisionConfig
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": [448, 448],
    "patch_size": [14, 14],
}
QK_NORM_EPS = 1e-6  # transformers' class has no key for it


@dataclasses.dataclass(frozen=True)
class InternVLConfig:
    vision: InternVitConfig
    text: TextConfig
    geometry: TileGeometry
    image_token: int
    projector_activation: str = "gelu"
    reward_head: str | None = None  # None: a policy; otherwise a variant of `models.reward_head`

    model_type: ClassVar[str] = "internvl"

    @property
    def tower_work(self) -> TowerWork:
        return TowerWork.of(self.vision, class_tokens=1)

    @property
    def projector_work(self) -> ProjectorWork:
        width, merged = self.text.hidden_size, self.vision.hidden_size * self.geometry.merge**2
        return ProjectorWork(tokens=self.geometry.features, first=merged * width, rest=width**2)


def read_config(checkpoint: Checkpoint) -> InternVLConfig:
    """Sizes of the model in a directory, in either naming. Raises UserError for a model that this project cannot run."""
    raw, where = checkpoint.config, checkpoint.where
    if original.is_original(raw):
        token = original.image_token(checkpoint.directory, raw)
        return config_from_hf(original.to_hf(raw, token, where), original.pixels(raw, where), where)
    pixels, source = stated_pixels(checkpoint)
    return config_from_hf(raw, pixels, where, source)


def config_from_hf(
    raw: Mapping[str, Any], pixels: Mapping[str, Any] | None, where: str, pixels_where: str = ""
) -> InternVLConfig:
    """The sizes from a Hugging Face `config.json` and image processor config (None: there is none), whose files are `where` and
    `pixels_where`.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(raw, where)
    processor = Stated({} if pixels is None else pixels, f"{pixels_where or where}: the image processor")
    statistics = (IMAGENET_MEAN, IMAGENET_STD) if pixels is None else (CLIP_MEAN, CLIP_STD)
    vision = _vision(stated, processor, statistics, where)
    if pixels is not None:
        check_preprocessing(PIXEL_DEFAULTS | pixels, vision.image_size, pixels_where or where)
    if stated.get("vision_feature_select_strategy", "default") != "default":
        raise UserError(f"{where}: vision_feature_select_strategy is not 'default'; InternVL drops the class token")
    text = read_text_config(stated, where, TITLE, tied=stated.truth("tie_word_embeddings", True))
    return InternVLConfig(
        vision=vision,
        text=text,
        geometry=_geometry(stated, processor, vision, where),
        image_token=stated.integer("image_token_id", 151667, least=0),
        projector_activation=stated.choice("projector_hidden_act", tuple(ACTIVATIONS), "gelu"),
        reward_head=stated.get("reward_head"),
    )


def _geometry(top: Stated, pixels: Stated, vision: InternVitConfig, where: str) -> TileGeometry:
    """The geometry. `crop_to_patches` of the image processor is ignored: it is false in the published files, but transformers'
    processor overrides it with true."""
    merge = 1 / top.positive("downsample_ratio", 0.5)
    if merge != round(merge):
        raise UserError(f"{where}: downsample_ratio {top.get('downsample_ratio')} is not 1/2, nor 1 over another whole number")
    tiles = dict(
        min_tiles=pixels.integer("min_patches", 1, least=1),
        max_tiles=pixels.integer("max_patches", 12, least=1),
        thumbnail=pixels.truth("use_thumbnail", True),
    )
    if tiles["min_tiles"] > tiles["max_tiles"]:
        limits = f"min_patches {tiles['min_tiles']} is more than max_patches {tiles['max_tiles']}"
        raise UserError(f"{pixels.where}: {limits}; no image could be cut")
    try:
        return TileGeometry(image_size=vision.image_size, patch_size=vision.patch_size, merge=round(merge), **tiles)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _vision(top: Stated, pixels: Stated, statistics: tuple[Statistics, Statistics], where: str) -> InternVitConfig:
    tower = top.part("vision_config", VISION_DEFAULTS)
    if tower.get("model_type", "internvl_vision") != "internvl_vision":
        raise UserError(f"{where}: vision_config.model_type is {tower.get('model_type')!r}; InternVL has an InternViT tower")
    # Set to false, the first would mean a tower without positions, the second one with a norm after its layers.
    for key in ("use_absolute_position_embeddings", "use_mean_pooling"):
        if not tower.truth(key, True):
            raise UserError(f"{where}: vision_config: {key} false is not supported; no published tower has it")
    return InternVitConfig(
        **tile_tower_sizes(top, tower, pixels, statistics, where),
        image_size=_side(tower, "image_size", where),
        patch_size=_side(tower, "patch_size", where),
        norm=tower.choice("norm_type", tuple(NORMS), "layer_norm"),
        norm_eps=tower.positive("layer_norm_eps", 1e-6),
        attention_bias=tower.truth("attention_bias", False),
        qk_norm_eps=QK_NORM_EPS if tower.truth("use_qk_norm", False) else None,
        activation=tower.choice("hidden_act", tuple(ACTIVATIONS), "gelu"),
    )


def _side(tower: Stated, key: str, where: str) -> int:
    """A side that is stated as one number, or as height and width that are equal."""
    value = tower.get(key)
    sides = value if isinstance(value, list) else [value]
    if not sides or len(sides) > 2 or any(side != sides[0] for side in sides):
        raise UserError(f"{where}: vision_config: {key} {value} is not one number or two equal ones")
    return Stated({key: sides[0]}, f"{where}: vision_config").integer(key, least=1)
