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
from mmrlhf_jax.models.stated import Stated

# What transformers' LlavaOnevisionImageProcessor takes where its file does not say; without a file SigLIP's 0.5 holds.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP = (0.5, 0.5, 0.5)
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh")  # of the tower and the projector

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
    pixels, source = {}, path
    for name in ("preprocessor_config.json", "processor_config.json"):  # where both say something, the latter counts
        if (directory / name).exists():
            found = read_json_object(directory / name)
            if stated := found.get("image_processor") or (found if "image_processor_type" in found else None):
                pixels, source = stated, directory / name
    config = config_from_hf(raw, pixels, str(path), str(source))
    _check_preprocessing(pixels, config.geometry, str(directory))
    return config


def config_from_hf(raw: dict[str, Any], pixels: dict[str, Any], where: str, pixels_where: str = "") -> LlavaOnevisionConfig:
    """From the dictionaries of a Hugging Face `config.json` and image processor config, which stand at `where` and
    `pixels_where`. Raises UserError that names the file and the key that is wrong."""
    stated = Stated(raw, where)
    vision = _vision(stated, Stated(pixels, f"{pixels_where or where}: the image processor"), where)
    text = _text(stated, where)
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
        projector_activation=stated.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
        projector_bias=stated.truth("multimodal_projector_bias", True),
        reward_head=stated.get("reward_head"),
    )


def _token(stated: Stated, name: str, default: int) -> int:
    """Under its newer key or its older one."""
    key = f"{name}_id" if stated.get(f"{name}_id") is not None else f"{name}_index"
    return stated.integer(key, default, least=0)


def _vision(top: Stated, pixels: Stated, where: str) -> VisionConfig:
    tower = top.part("vision_config", VISION_DEFAULTS)
    if tower.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise UserError(f"{where}: vision_config.model_type is {tower.get('model_type')!r}; this project runs SigLIP towers")
    layers, feature_layer = tower.integer("num_hidden_layers", least=1), top.get("vision_feature_layer", -1)
    if not isinstance(feature_layer, int) or isinstance(feature_layer, bool):
        raise UserError(f"{where}: vision_feature_layer {feature_layer} is not one number; several layers are not supported")
    feature_layers = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer
    if not 0 < feature_layers <= layers:
        raise UserError(f"{where}: vision_feature_layer {feature_layer} is outside the tower's {layers} layers")
    hidden, heads = tower.integer("hidden_size", least=1), tower.integer("num_attention_heads", least=1)
    if hidden % heads:
        raise UserError(f"{where}: vision_config: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    return VisionConfig(
        hidden_size=hidden,
        intermediate_size=tower.integer("intermediate_size", least=1),
        layers=layers,
        heads=heads,
        image_size=tower.integer("image_size", least=1),
        patch_size=tower.integer("patch_size"),
        layer_norm_eps=tower.positive("layer_norm_eps", 1e-6),
        activation=tower.choice("hidden_act", ACTIVATIONS, "gelu_pytorch_tanh"),
        feature_layers=feature_layers,
        image_mean=pixels.colour("image_mean", SIGLIP if pixels.is_empty else CLIP_MEAN),
        image_std=pixels.colour("image_std", SIGLIP if pixels.is_empty else CLIP_STD, positive=True),
        rescale=pixels.positive("rescale_factor", 1 / 255),
    )


def _text(top: Stated, where: str) -> TextConfig:
    raw = top.part("text_config", TEXT_DEFAULTS)
    if raw.get("model_type", "qwen2") != "qwen2":
        raise UserError(
            f"{where}: text_config.model_type is {raw.get('model_type')!r}; this project runs Qwen2 language models"
        )
    if raw.get("use_sliding_window") or raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: text_config has a sliding window or an activation other than silu, which is not supported")
    rope = raw.part("rope_parameters" if raw.get("rope_parameters") else "rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{where}: rope_type {kind!r} is not supported; LLaVA-OneVision uses plain rotary embeddings")
    hidden, heads = raw.integer("hidden_size", least=1), raw.integer("num_attention_heads", least=1)
    kv_heads = heads if raw.get("num_key_value_heads") is None else raw.integer("num_key_value_heads", least=1)
    if heads % kv_heads:
        raise UserError(f"{where}: text_config: {heads} attention heads are no multiple of num_key_value_heads {kv_heads}")
    return TextConfig(
        vocab_size=raw.integer("vocab_size", least=1),
        hidden_size=hidden,
        intermediate_size=raw.integer("intermediate_size", least=1),
        layers=raw.integer("num_hidden_layers", least=1),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads if raw.get("head_dim") is None else raw.integer("head_dim", least=1),
        rope_theta=rope.positive("rope_theta") if rope.get("rope_theta") is not None else raw.positive("rope_theta", 1e4),
        rms_norm_eps=raw.positive("rms_norm_eps", 1e-6),
        tied=any([each.truth("tie_word_embeddings", False) for each in (top, raw)]),  # either one suffices in transformers
    )


def _check_preprocessing(pixels: dict[str, Any], geometry: VisionGeometry, where: str) -> None:
    """Refuse an image processor that makes other pixels than this project's: a quiet mismatch would spoil every number."""
    for key, expected in PREPROCESSING.items():
        if pixels.get(key, expected) != expected:
            raise UserError(f"{where}: the image processor has {key} {pixels[key]!r}; only {expected!r} is supported")
    size = pixels.get("size") or {}
    if any(length != geometry.image_size for length in (size.values() if isinstance(size, dict) else [size])):
        raise UserError(f"{where}: the image processor's size {size} is not the vision tower's, {geometry.image_size}")
    cut = pixels.get("image_grid_pinpoints")
    if (
        geometry.anyres
        and cut
        and sorted(Stated(pixels, where).pairs("image_grid_pinpoints", ())) != sorted(geometry.pinpoints)
    ):
        raise UserError(f"{where}: image_grid_pinpoints of the image processor and of config.json differ; they must agree")
