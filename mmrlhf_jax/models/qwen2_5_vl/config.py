"""Sizes of a Qwen2.5-VL checkpoint, read from its own config files; nothing about training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.decoder import TextConfig
from mmrlhf_jax.models.family import Checkpoint
from mmrlhf_jax.models.image_processor import CLIP_MEAN, CLIP_STD, PREPROCESSING, stated_pixels, stated_video_pixels
from mmrlhf_jax.models.qwen2 import read_text_config
from mmrlhf_jax.models.qwen2_5_vl.geometry import QwenGeometry
from mmrlhf_jax.models.qwen_vit import QwenVitConfig
from mmrlhf_jax.models.stated import Stated
from mmrlhf_jax.models.tower_config import width_and_heads
from mmrlhf_jax.models.work import ProjectorWork, TowerWork

TITLE = "Qwen2.5-VL"
# The defaults of transformers' Qwen2_5_VLTextConfig and Qwen2_5_VLVisionConfig, which are not the values of published files.
TEXT_DEFAULTS = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
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
SECTIONS = (16, 24, 24)  # pairs of dimensions that time, row and column rotate
# Keys of the language model, which published files have at the top of config.json and newer ones in `text_config`.
TEXT_KEYS = (
    *TEXT_DEFAULTS,
    "head_dim",
    "hidden_act",
    "rope_scaling",
    "rope_parameters",
    "use_sliding_window",
    "max_position_embeddings",
)
LIMITS = (3136, 12845056)  # of an image's pixels, in published files
CLASS_LIMITS = (3136, 1003520)  # of transformers' Qwen2VLImageProcessor, for a file that does not state them
CLASS_VIDEO_LIMITS = (100352, 602112)  # of a frame's pixels, of Qwen2VLVideoProcessor


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    vision: QwenVitConfig
    text: TextConfig
    geometry: QwenGeometry
    image_token: int
    reward_head: str | None = None  # None: a policy; otherwise a variant of `models.reward_head`

    model_type: ClassVar[str] = "qwen2_5_vl"

    @property
    def tower_work(self) -> TowerWork:
        vision = self.vision
        return TowerWork(
            layers=vision.layers,
            slots=vision.block,
            heads=vision.heads,
            width=vision.hidden_size,
            layer_products=4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size,
            embedding_products=vision.channels * vision.hidden_size * vision.block,
            windowed=vision.layers - len({*vision.full_layers}),
            window=vision.band,
        )

    @property
    def projector_work(self) -> ProjectorWork:
        merged = self.vision.hidden_size * self.vision.block
        return ProjectorWork(tokens=1, first=merged**2, rest=merged * self.text.hidden_size)


def with_text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the language model's settings in `text_config`, from one that may have them at the top."""
    if raw.get("text_config") is not None:
        return dict(raw)
    return {**raw, "text_config": {key: raw[key] for key in TEXT_KEYS if key in raw}}


def read_config(checkpoint: Checkpoint) -> QwenVLConfig:
    """Sizes of the model in a directory. Raises UserError for a model that this project cannot run."""
    pixels, source = stated_pixels(checkpoint)
    return config_from_hf(checkpoint.config, pixels, checkpoint.where, source, *stated_video_pixels(checkpoint))


def config_from_hf(
    raw: Mapping[str, Any],
    pixels: Mapping[str, Any] | None,
    where: str,
    pixels_where: str = "",
    video_pixels: Mapping[str, Any] | None = None,
    video_where: str = "",
) -> QwenVLConfig:
    """The sizes from a Hugging Face `config.json`, image processor config and video processor config (None: there is none; then
    the image processor's counts for videos as well), whose files are `where`, `pixels_where` and `video_where`.

    Raises UserError that names the file and the key that is wrong.
    """
    stated = Stated(with_text_config(raw), where)
    processor = Stated({} if pixels is None else pixels, f"{pixels_where or where}: the image processor")
    types = ("qwen2_5_vl_text", "qwen2_5_vl", "qwen2")
    text = read_text_config(stated, where, TITLE, defaults=TEXT_DEFAULTS, model_types=types, axes=SECTIONS)
    vision = _vision(stated, processor, text, where)
    _check_preprocessing(processor, vision)
    limits = video_limits = _limits(processor, LIMITS if pixels is None else CLASS_LIMITS)
    if video_pixels is not None:
        videos = Stated(video_pixels, f"{video_where}: the video processor")
        _check_preprocessing(videos, vision)
        _check_statistics(videos, vision)
        video_limits = _limits(videos, CLASS_VIDEO_LIMITS)
    sides = (vision.patch_size, vision.merge, vision.frames, vision.window)
    try:
        geometry = QwenGeometry(
            *sides, *limits, *video_limits, stated.part("vision_config", VISION_DEFAULTS).positive("tokens_per_second")
        )
    except UserError as error:
        raise UserError(f"{processor.where}: {error}") from None
    return QwenVLConfig(
        vision=vision,
        text=text,
        geometry=geometry,
        image_token=stated.integer("image_token_id", 151655, least=0),
        reward_head=stated.get("reward_head"),
    )


def _vision(top: Stated, pixels: Stated, text: TextConfig, where: str) -> QwenVitConfig:
    tower = top.part("vision_config", VISION_DEFAULTS)
    sizes = {"hidden_size": tower.get("hidden_size"), "num_attention_heads": tower.get("num_heads")}
    hidden, heads = width_and_heads(Stated(sizes, tower.where), where)
    if hidden // heads % 4:
        raise UserError(f"{tower.where}: heads of {hidden // heads} dimensions cannot be rotated by rows and columns")
    if tower.choice("hidden_act", ("silu",), "silu") and tower.integer("out_hidden_size", text.hidden_size) != text.hidden_size:
        raise UserError(f"{tower.where}: out_hidden_size is not {text.hidden_size}, the language model's width")
    if tower.integer("in_channels", 3) != 3 or tower.integer("temporal_patch_size") != 2:
        raise UserError(f"{tower.where}: only patches of 3 channels and 2 frames are supported")
    layers, patch, merge = (tower.integer(key, least=1) for key in ("depth", "patch_size", "spatial_merge_size"))
    full = tower.get("fullatt_block_indexes")
    if not isinstance(full, list) or not all(isinstance(layer, int) and layer >= 0 for layer in full):
        raise UserError(f"{tower.where}: fullatt_block_indexes must be a list of layers, found {full!r}")
    window = tower.integer("window_size", least=1) // merge // patch
    if not window:
        raise UserError(f"{tower.where}: window_size {tower.get('window_size')} is less than {merge} patches of {patch} pixels")
    return QwenVitConfig(
        hidden_size=hidden,
        intermediate_size=tower.integer("intermediate_size", least=1),
        layers=layers,
        heads=heads,
        patch_size=patch,
        merge=merge,
        frames=2,
        window=window,
        full_layers=tuple(layer for layer in full if layer < layers),
        image_mean=pixels.colour("image_mean", CLIP_MEAN),
        image_std=pixels.colour("image_std", CLIP_STD, positive=True),
        rescale=pixels.positive("rescale_factor", 1 / 255),
    )


def _limits(pixels: Stated, default: tuple[int, int]) -> tuple[int, int]:
    """The least and the most pixels of an image, under their older keys, which take precedence as in transformers, or in
    `size`."""
    size = pixels.part("size")
    names = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    stated = [
        pixels.integer(older, least=1) if pixels.get(older) is not None else size.integer(newer, value, least=1)
        for (older, newer), value in zip(names, default, strict=True)
    ]
    return stated[0], stated[1]


def _check_statistics(videos: Stated, vision: QwenVitConfig) -> None:
    """UserError for a video processor that gives pixels another scale than the image processor."""
    found = (
        ("image_mean", videos.colour("image_mean", CLIP_MEAN), vision.image_mean),
        ("image_std", videos.colour("image_std", CLIP_STD, positive=True), vision.image_std),
        ("rescale_factor", videos.positive("rescale_factor", 1 / 255), vision.rescale),
    )
    for key, value, expected in found:
        if value != expected:
            raise UserError(f"{videos.where} has {key} {value}, and the image processor {expected}; they must be equal")


def _check_preprocessing(pixels: Stated, vision: QwenVitConfig) -> None:
    """UserError for an image processor that computes other pixels than this project."""
    sides = {"patch_size": vision.patch_size, "merge_size": vision.merge, "temporal_patch_size": vision.frames}
    for key, expected in (PREPROCESSING | sides).items():
        if pixels.get(key, expected) != expected:
            raise UserError(f"{pixels.where} has {key} {pixels.get(key)!r}; only {expected!r} is supported for this model")
