"""Converts `config.json` between the original naming (`OpenGVLab` code, `InternVLChatModel`) and Hugging Face's.

Reference: OpenGVLab `configuration_internvl_chat.py` and `configuration_intern_vit.py`, transformers
`convert_internvl_weights_to_hf.py`. Absent keys have the defaults of the original classes, which differ
from the values in published files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.models.stated import Stated, architectures, kept

if TYPE_CHECKING:
    from mmrlhf_jax.models.decoder import TextConfig
    from mmrlhf_jax.models.intern_vit import InternVitConfig
    from mmrlhf_jax.models.internvl.config import InternVLConfig

MODEL_TYPE, ARCHITECTURE = "internvl_chat", "InternVLChatModel"
# Where transformers finds the classes of a directory in this naming, and the files that define them.
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": "modeling_internvl_chat.InternVLChatModel",
    "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
}
CODE_FILES = (
    "configuration_intern_vit.py",
    "configuration_internvl_chat.py",
    "conversation.py",
    "modeling_intern_vit.py",
    "modeling_internvl_chat.py",
)
IMAGE_TOKEN = "<IMG_CONTEXT>"
LANGUAGE_MODEL = "Qwen2ForCausalLM"
SIZES = "InternVL2-1B, InternVL2.5-1B/4B/38B/78B and InternVL3-1B/2B/8B/14B/38B/78B"

VISION_DEFAULTS = {
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "image_size": 224,
    "patch_size": 14,
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "qkv_bias": False,
    "qk_normalization": True,
}
VISION_NAMES = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}  # original -> Hugging Face
# Keys of the language model's config that only tell the original code how to build it.
LANGUAGE_DROPPED = ("_name_or_path", "architectures", "attn_implementation", "_attn_implementation")


def is_original(raw: Mapping[str, Any]) -> bool:
    return raw.get("model_type") == MODEL_TYPE or ARCHITECTURE in architectures(raw)


def to_hf(raw: Mapping[str, Any], image_token: int, where: str) -> dict[str, Any]:
    """Hugging Face `config.json` of an original checkpoint. UserError for a variant that this project does not run."""
    stated = Stated(raw, where)
    language, tower = stated.part("llm_config"), stated.part("vision_config", VISION_DEFAULTS)
    check_language_model(architectures(raw.get("llm_config") or {}), language.get("model_type", "qwen2"), where)
    if stated.get("ps_version", "v1") != "v2":
        found = stated.get("ps_version", "v1")
        raise UserError(f"{where}: ps_version {found!r} transposes an image's tokens; only 'v2' is supported")
    for key in ("use_backbone_lora", "use_llm_lora", "pad2square", "image_fold"):
        if stated.get(key):
            raise UserError(f"{where}: {key} {stated.get(key)!r} is not supported; only a model without it is")
    side = tower.integer("image_size", least=1)
    if (forced := stated.get("force_image_size")) not in (None, side):
        raise UserError(f"{where}: force_image_size {forced} is not the tower's image_size {side}; resize its positions first")
    if tower.truth("qk_normalization", True) and tower.get("layer_norm_eps") != 1e-6:
        raise UserError(f"{where}: vision_config: qk_normalization with layer_norm_eps {tower.get('layer_norm_eps')}, not 1e-6")
    vision = {VISION_NAMES.get(key, key): tower.get(key) for key in VISION_DEFAULTS}
    vision |= {"model_type": "internvl_vision", "use_absolute_position_embeddings": True}
    vision |= {key: [tower.integer(key, least=1)] * 2 for key in ("image_size", "patch_size")}
    text = {key: value for key, value in (raw.get("llm_config") or {}).items() if key not in LANGUAGE_DROPPED}
    tied = language.truth("tie_word_embeddings", False)
    config = {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "image_token_id": image_token,
        "downsample_ratio": stated.get("downsample_ratio", 0.5),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": stated.get("select_layer", -1),
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": tied,
        "text_config": {**text, "model_type": "qwen2", "tie_word_embeddings": tied},
        "vision_config": vision,
    }
    return config | kept(raw)


def pixels(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of an image processor, which the original code takes from its config and from constants."""
    stated = Stated(raw, where)
    side = stated.part("vision_config", VISION_DEFAULTS).integer("image_size", least=1)
    dynamic = stated.truth("dynamic_image_size", False)
    return {
        "size": {"height": side, "width": side},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "min_patches": stated.integer("min_dynamic_patch", 1, least=1) if dynamic else 1,
        "max_patches": stated.integer("max_dynamic_patch", 6, least=1) if dynamic else 1,
        "use_thumbnail": stated.truth("use_thumbnail", False),
    }


def check_language_model(classes: Sequence[str], model_type: str, where: str) -> None:
    """UserError unless the language model is Qwen2; other sizes of InternVL have InternLM, Phi-3, Llama or Qwen3."""
    found = classes[0] if classes else model_type
    if found not in (LANGUAGE_MODEL, "qwen2"):
        raise UserError(f"{where}: the language model is {found}; of InternVL this project runs the sizes with Qwen2: {SIZES}")


def from_hf(config: Mapping[str, Any], read: InternVLConfig, template: str) -> dict[str, Any]:
    """The original `config.json` of a Hugging Face checkpoint. `read` are the sizes read from it, and `template` is the name of
    the original code's conversation template."""
    if read.projector_activation != "gelu":
        raise UserError(
            f"the original naming knows one projector, gelu; this model's is {read.projector_activation}: leave --naming at hf"
        )
    tower, geometry = read.vision, read.geometry
    if tower.qk_norm_eps not in (None, tower.norm_eps):
        raise UserError(
            f"the original naming knows one epsilon for all norms of the tower; this model's are {tower.norm_eps} and, of"
            f" queries and keys, {tower.qk_norm_eps}: leave --naming at hf"
        )
    raw = {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        "auto_map": AUTO_MAP,
        "downsample_ratio": 1 / geometry.merge,
        "dynamic_image_size": True,
        "force_image_size": tower.image_size,
        "max_dynamic_patch": geometry.max_tiles,
        "min_dynamic_patch": geometry.min_tiles,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1 if tower.feature_layers == tower.layers else tower.feature_layers,
        "template": template,
        "tie_word_embeddings": read.text.tied,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": geometry.thumbnail,
        "llm_config": _language_config(config.get("text_config") or {}, read.text),
        "vision_config": _tower_config(tower),
    }
    return raw | kept(config)


def _language_config(text: Mapping[str, Any], read: TextConfig) -> dict[str, Any]:
    """`llm_config` of a Hugging Face `text_config`."""
    language = {key: value for key, value in text.items() if key not in ("rope_parameters", "rope_scaling", "layer_types")}
    language |= {
        "model_type": "qwen2",
        "architectures": [LANGUAGE_MODEL],
        "rope_theta": read.rope_theta,
        "tie_word_embeddings": read.tied,
    }
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if (kind := scaling.get("rope_type", scaling.get("type", "default"))) != "default":
        language["rope_scaling"] = {"type": kind, "factor": scaling["factor"]}
    return language


def _tower_config(tower: InternVitConfig) -> dict[str, Any]:
    """The original `vision_config` of a tower."""
    return {
        "model_type": "intern_vit_6b",
        "architectures": ["InternVisionModel"],
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "num_channels": 3,
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "norm_type": tower.norm,
        "layer_norm_eps": tower.norm_eps,
        "hidden_act": tower.activation,
        "qkv_bias": tower.attention_bias,
        "qk_normalization": tower.qk_norm_eps is not None,
    }


def image_token(directory: str, raw: Mapping[str, Any]) -> int:
    """The id of `<IMG_CONTEXT>`, which the original config does not state, from the tokenizer's files.

    Without a tokenizer it is that of the published checkpoints: their last nine embeddings belong to the tokens that InternVL
    adds, of which it is the third.
    """
    folder = epath.Path(directory)
    for name, find in (("added_tokens.json", _by_name), ("tokenizer_config.json", _by_number), ("tokenizer.json", _in_list)):
        if (folder / name).exists():
            stated = Stated(read_json_object(folder / name), f"{directory}/{name}")
            if (number := find(stated)) is not None:
                return number
    return Stated(raw, f"{directory}/config.json").part("llm_config").integer("vocab_size", 151674, least=7) - 7


def _by_name(added: Stated) -> int | None:
    return None if added.get(IMAGE_TOKEN) is None else added.integer(IMAGE_TOKEN, least=0)


def _by_number(config: Stated) -> int | None:
    numbered = config.part("added_tokens_decoder")
    found = [number for number in numbered if numbered.part(number).get("content") == IMAGE_TOKEN]
    if found and not found[0].isdecimal():
        raise UserError(f"{numbered.where}: {IMAGE_TOKEN} has the key {found[0]!r}, which is no token's number")
    return int(found[0]) if found else None


def _in_list(tokenizer: Stated) -> int | None:
    tokens = (token for token in tokenizer.parts("added_tokens") if token.get("content") == IMAGE_TOKEN)
    return next((token.integer("id", least=0) for token in tokens), None)
