"""Sizes of a LLaVA-OneVision checkpoint, read from its own config files; nothing about training.

No jax here: data workers read it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.huggingface.tensors import StoredTensors
from mmrlhf_jax.models.llava_onevision import original
from mmrlhf_jax.models.llava_onevision.vision_plan import PLAIN, VisionGeometry

# What transformers' LlavaOnevisionImageProcessor takes where its file does not say; without a file SigLIP's 0.5 holds.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Published configs leave out what equals a default of transformers' LlavaOnevisionConfig, SiglipVisionConfig, Qwen2Config.
PINPOINTS = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
TEXT_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
# What the pixels must have gone through: the only preprocessing that this project does.
PREPROCESSING = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6
    activation: str = "gelu_pytorch_tanh"
    feature_layers: int = 0  # how many layers run; `vision_feature_layer` -1 = all
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale: float = 1 / 255

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.patches_per_side**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tied: bool
    attention_bias: bool = True


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


def read_config(directory: epath.PathLike) -> LlavaOnevisionConfig:
    """Sizes of the model in a directory, in either naming: Hugging Face's or the original one (`LlavaQwen`).

    Reads `config.json`, `preprocessor_config.json` for pixel statistics and, in the original naming, which states no
    size of the tower, the headers of the weights. Raises UserError where the directory is no LLaVA-OneVision model.
    """
    directory = epath.Path(directory)
    path = directory / "config.json"
    if not path.exists():
        raise UserError(f"{directory}: no config.json; a model is a Hugging Face directory with config and safetensors weights")
    raw = read_json_object(path)
    if original.is_original(raw):
        raw = original.to_hf(raw, StoredTensors(directory).shapes, str(path))
    if raw.get("model_type") != "llava_onevision":
        raise UserError(f"{path}: model_type is {raw.get('model_type')!r}; this project reads LLaVA-OneVision checkpoints")
    pixels = {}
    for name in ("preprocessor_config.json", "processor_config.json"):  # where both say something, the latter counts
        if (directory / name).exists():
            found = read_json_object(directory / name)
            pixels = found.get("image_processor") or (found if "image_processor_type" in found else pixels)
    config = config_from_hf(raw, pixels, str(path))
    _check_preprocessing(pixels, config.geometry, str(directory))
    return config


def config_from_hf(raw: dict[str, Any], pixels: dict[str, Any], where: str) -> LlavaOnevisionConfig:
    """From the dictionaries of a Hugging Face `config.json` and image processor config."""
    vision = _vision(raw.get("vision_config") or {}, raw, pixels, where)
    text = _text(raw.get("text_config") or {}, raw, where)
    if raw.get("vision_feature_select_strategy", "full") != "full":
        raise UserError(f"{where}: vision_feature_select_strategy is not 'full'; a SigLIP tower has no class token to drop")
    aspect = raw.get("vision_aspect_ratio", "anyres_max_9")
    limit = re.fullmatch(r"anyres(?:_max_(\d+))?", aspect)
    if limit is None and aspect not in PLAIN:
        known = "'anyres', 'anyres_max_N', " + ", ".join(map(repr, PLAIN))
        raise UserError(f"{where}: vision_aspect_ratio {aspect!r} is not one of {known}")
    geometry = VisionGeometry(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        pinpoints=tuple((int(h), int(w)) for h, w in raw.get("image_grid_pinpoints") or PINPOINTS),
        max_patches=int(limit[1]) if limit and limit[1] else None,
        anyres=limit is not None,
        plain=aspect if limit is None else "pad",
        video_newline=raw.get("mm_newline_position", "one_token"),
        pad_color=tuple(int(255 * value) for value in vision.image_mean),
    )
    return LlavaOnevisionConfig(
        vision=vision,
        text=text,
        geometry=geometry,
        image_token=raw.get("image_token_id", raw.get("image_token_index", 151646)),
        video_token=raw.get("video_token_id", raw.get("video_token_index", 151647)),
        projector_activation=raw.get("projector_hidden_act", "gelu"),
        projector_bias=raw.get("multimodal_projector_bias", True),
        reward_head=raw.get("reward_head"),
    )


def _vision(raw: dict[str, Any], top: dict[str, Any], pixels: dict[str, Any], where: str) -> VisionConfig:
    if raw.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise UserError(f"{where}: vision_config.model_type is {raw['model_type']!r}; this project runs SigLIP towers")
    raw = VISION_DEFAULTS | raw
    layers = raw["num_hidden_layers"]
    feature_layer = top.get("vision_feature_layer", -1)
    if not isinstance(feature_layer, int):
        raise UserError(f"{where}: vision_feature_layer {feature_layer} is not one number; several layers are not supported")
    feature_layers = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer
    if not 0 < feature_layers <= layers:
        raise UserError(f"{where}: vision_feature_layer {feature_layer} is outside the tower's {layers} layers")
    return VisionConfig(
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        layers=layers,
        heads=raw["num_attention_heads"],
        image_size=raw["image_size"],
        patch_size=raw["patch_size"],
        layer_norm_eps=raw.get("layer_norm_eps", 1e-6),
        activation=raw.get("hidden_act", "gelu_pytorch_tanh"),
        feature_layers=feature_layers,
        image_mean=tuple(pixels.get("image_mean") or (CLIP_MEAN if pixels else (0.5, 0.5, 0.5))),
        image_std=tuple(pixels.get("image_std") or (CLIP_STD if pixels else (0.5, 0.5, 0.5))),
        rescale=pixels.get("rescale_factor") or 1 / 255,
    )


def _text(raw: dict[str, Any], top: dict[str, Any], where: str) -> TextConfig:
    if raw.get("model_type", "qwen2") != "qwen2":
        raise UserError(f"{where}: text_config.model_type is {raw['model_type']!r}; this project runs Qwen2 language models")
    if raw.get("use_sliding_window") or raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: text_config has a sliding window or an activation other than silu, which is not supported")
    raw = TEXT_DEFAULTS | raw
    heads = raw["num_attention_heads"]
    hidden = raw["hidden_size"]
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{where}: rope_type {kind!r} is not supported; LLaVA-OneVision uses plain rotary embeddings")
    return TextConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        intermediate_size=raw["intermediate_size"],
        layers=raw["num_hidden_layers"],
        heads=heads,
        kv_heads=raw["num_key_value_heads"] or heads,
        head_dim=raw.get("head_dim") or hidden // heads,
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 1e4))),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        tied=bool(top.get("tie_word_embeddings") or raw.get("tie_word_embeddings")),  # either one suffices in transformers
    )


def _check_preprocessing(pixels: dict[str, Any], geometry: VisionGeometry, where: str) -> None:
    """Refuse an image processor that makes other pixels than this project's: a quiet mismatch would spoil every number."""
    for key, expected in PREPROCESSING.items():
        if pixels.get(key, expected) != expected:
            raise UserError(f"{where}: the image processor has {key} {pixels[key]!r}; only {expected!r} is supported")
    size = pixels.get("size") or {}
    if isinstance(size, dict) and any(length != geometry.image_size for length in size.values()):
        raise UserError(f"{where}: the image processor's size {size} is not the vision tower's, {geometry.image_size}")
    cut = pixels.get("image_grid_pinpoints")
    if geometry.anyres and cut and sorted(map(tuple, cut)) != sorted(geometry.pinpoints):
        raise UserError(f"{where}: image_grid_pinpoints of the image processor and of config.json differ; they must agree")
