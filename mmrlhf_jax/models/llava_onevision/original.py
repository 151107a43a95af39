"""Converts `config.json` between the original naming (`lmms-lab`, LLaVA-NeXT code) and Hugging Face's.

The original file is a Qwen2 config with `mm_*` keys beside it. It names the vision tower and gives no sizes of it, so
those come from the stored tensors. Pinpoints are (width, height) there and (height, width) in transformers.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.stated import Stated, architectures, kept

if TYPE_CHECKING:
    from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig

logger = logging.getLogger(__name__)

TOWER = "model.vision_tower.vision_tower.vision_model."
ARCHITECTURE = "LlavaQwenForCausalLM"

# Keys of a Qwen2 config, which the original keeps at the top level and Hugging Face under `text_config`.
TEXT_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
)
# Settings of upstream's video pooling, and the values that mean the pooling of this project: bilinear, 2 x 2 patches to one.
POOLING = {"mm_spatial_pool_mode": ("bilinear",), "mm_spatial_pool_stride": (None, 2), "add_faster_video": (None, False)}
HEADS = {768: 12, 1024: 16, 1152: 16}  # the published SigLIP towers: width -> attention heads


def is_original(raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of the original code: model_type `llava`, `llava_qwen` or plain `qwen2` with `mm_*`."""
    return "mm_vision_tower" in raw or ARCHITECTURE in architectures(raw)


def to_hf(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """Hugging Face `config.json` of an original checkpoint; `shapes` are those of its tensors, by their names."""
    if raw.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu":
        raise UserError(f"{where}: mm_projector_type {raw['mm_projector_type']!r} is not LLaVA-OneVision's 'mlp2x_gelu'")
    if raw.get("mm_patch_merge_type", "spatial_unpad") not in ("spatial_unpad", "spatial_unpad_anyres_max_9"):
        raise UserError(f"{where}: mm_patch_merge_type {raw['mm_patch_merge_type']!r} is not LLaVA-OneVision's 'spatial_unpad'")
    for key, supported in POOLING.items():
        if raw.get(key, supported[0]) not in supported:
            raise UserError(f"{where}: {key} {raw[key]!r} is not supported; this project knows {supported[-1]!r}")
    image_token = Stated(raw, where).integer("image_token_index", 151646, least=0)
    config = {
        "model_type": "llava_onevision",
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_token_index": image_token,
        "video_token_index": raw.get("video_token_index", image_token + 1),
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "vision_aspect_ratio": raw.get("image_aspect_ratio", "anyres_max_9"),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {"model_type": "qwen2", **{key: raw[key] for key in TEXT_KEYS if key in raw}},
    }
    pinpoints = raw.get("image_grid_pinpoints")
    if not isinstance(pinpoints, str | None):
        pinpoints = Stated(raw, where).pairs("image_grid_pinpoints", ())
    side = _image_side(pinpoints)
    config["vision_config"] = _tower(raw, shapes, side, where)
    config["image_grid_pinpoints"] = [[h, w] for w, h in _pinpoints(pinpoints, config["vision_config"]["image_size"], where)]
    if raw.get("mm_newline_position", "one_token") != "one_token":
        config["mm_newline_position"] = raw["mm_newline_position"]
    return config | kept(raw)


def from_hf(config: Mapping[str, Any], read: LlavaOnevisionConfig) -> dict[str, Any]:
    """The original `config.json` of a Hugging Face checkpoint; `read` are the sizes read from it.

    `vision_config` is kept as an additional key: the original code ignores it, but towers other than SigLIP so400m need it. It
    counts only the layers that run, because the original code runs all. UserError for a projector that the naming cannot
    express.
    """
    if read.projector_activation != "gelu" or not read.projector_bias:
        biases = "" if read.projector_bias else " without biases"
        raise UserError(
            f"the original naming knows one projector, gelu with biases; this model's is {read.projector_activation}{biases}:"
            " leave --naming at hf"
        )
    text, tower = config.get("text_config") or {}, read.vision
    vision = (config.get("vision_config") or {}) | {
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_hidden_layers": tower.feature_layers,
        "num_attention_heads": tower.heads,
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
    }
    raw = {key: text[key] for key in TEXT_KEYS if key in text}
    raw |= {
        "model_type": "llava",
        "architectures": [ARCHITECTURE],
        "rope_theta": read.text.rope_theta,
        "tie_word_embeddings": read.text.tied,
        "image_token_index": read.image_token,
        "video_token_index": read.video_token,
        "image_aspect_ratio": config.get("vision_aspect_ratio", "anyres_max_9"),
        "image_grid_pinpoints": [[w, h] for h, w in read.geometry.pinpoints],
        "mm_hidden_size": tower.hidden_size,
        "mm_newline_position": config.get("mm_newline_position", "one_token"),
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "use_mm_proj": True,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": text.get("max_position_embeddings", 32768),
        "vision_config": vision,
    }
    return raw | kept(config)


def _tower(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], side: int | None, where: str) -> dict[str, Any]:
    """`vision_config`: sizes from the shapes of the tensors, and SigLIP so400m's values for all other keys."""
    given = Stated(raw, where).part("vision_config")
    patch = shapes.get(TOWER + "embeddings.patch_embedding.weight")
    positions = shapes.get(TOWER + "embeddings.position_embedding.weight")
    fc1 = shapes.get(TOWER + "encoder.layers.0.mlp.fc1.weight")
    if patch is None or positions is None or fc1 is None:
        raise UserError(f"{where}: the weights hold no vision tower ({TOWER}*); a model without its own tower cannot be loaded")
    layers = {int(m[1]) for m in map(re.compile(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.").match, shapes) if m}
    hidden, patch_size, grid = patch[0], patch[-1], math.isqrt(positions[0])
    if side is None or side // patch_size != grid:
        side = 384 if (patch_size, grid) == (14, 27) else grid * patch_size
    return {
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "hidden_size": hidden,
        "intermediate_size": fc1[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": given.get("num_attention_heads") or _heads(hidden, where),
        "image_size": given.get("image_size", side),
        "patch_size": patch_size,
        "layer_norm_eps": given.get("layer_norm_eps", 1e-6),
        "hidden_act": given.get("hidden_act", "gelu_pytorch_tanh"),
    }


def _heads(hidden: int, where: str) -> int:
    """The number of attention heads, which no shape shows: that of the published tower of this width, otherwise so400m's 16."""
    if hidden in HEADS:
        return HEADS[hidden]
    if hidden % 16:
        raise UserError(f"{where}: a vision tower of width {hidden} needs `vision_config` with its num_attention_heads")
    logger.warning("%s: no published SigLIP tower is %d wide; assuming 16 attention heads", where, hidden)
    return 16


def _image_side(pinpoints: Any) -> int | None:
    """The side of a tile that a list of pinpoints implies: the greatest common divisor of its numbers. None without a list."""
    if not isinstance(pinpoints, Sequence) or isinstance(pinpoints, str) or not pinpoints:
        return None
    return math.gcd(*(number for pair in pinpoints for number in pair))


def _pinpoints(pinpoints: Any, side: int, where: str) -> list[tuple[int, int]]:
    """The (width, height) pairs of a list, or of a range in tiles such as "(1x1),...,(6x6)", ordered by width, then height."""
    if pinpoints is None:
        pinpoints = "(1x1),...,(6x6)"
    if isinstance(pinpoints, str):
        ends = [(int(w), int(h)) for w, h in re.findall(r"(\d+)x(\d+)", pinpoints)]
        if len(ends) < 2:
            raise UserError(f"{where}: image_grid_pinpoints {pinpoints!r} is neither a list of pairs nor '(1x1),...,(NxN)'")
        (w0, h0), (w1, h1) = ends[0], ends[-1]
        return [(side * w, side * h) for w in range(w0, w1 + 1) for h in range(h0, h1 + 1)]
    return list(pinpoints)
