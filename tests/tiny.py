"""Tiny LLaVA-OneVision checkpoints, models and tokenizers with random weights, for tests. Nothing here needs torch.

The tensor list below is written out from the released checkpoints, not taken from the table that it tests.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.sharding.mesh import make_mesh

Naming = Literal["hf", "legacy", "saved", "original"]

SIDE = 30  # of a tile: 4 x 4 patches of 7 pixels, and 2 pixels that no patch sees
PINPOINTS = [[SIDE * rows, SIDE * columns] for rows in range(1, 7) for columns in range(1, 7)]
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
IMAGE_TOKEN, VIDEO_TOKEN = 259, 260
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def config(*, text: dict | None = None, vision: dict | None = None, **top: Any) -> dict[str, Any]:
    """A Hugging Face `config.json`: 3 vision layers with 3 heads, 2 decoder layers with 6 heads over 2 key-value heads."""
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": 7,
        "vision_use_head": False,
    }
    decoder = {
        "model_type": "qwen2",
        "vocab_size": 264,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    tower |= vision or {}
    decoder |= text or {}
    raw = {
        "model_type": "llava_onevision",
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "dtype": "float32",
        "image_token_index": IMAGE_TOKEN,
        "video_token_index": VIDEO_TOKEN,
        "image_grid_pinpoints": PINPOINTS,
        "projector_hidden_act": "gelu",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": decoder["tie_word_embeddings"],
        "vision_config": tower,
        "text_config": decoder,
    }
    return copy.deepcopy(raw | top)


def original_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` that the original code would have for the same model; it says the tower's heads beside it."""
    text = {key: value for key, value in raw["text_config"].items() if key != "model_type"}
    return text | {
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "torch_dtype": "bfloat16",
        "image_token_index": raw["image_token_index"],
        "image_aspect_ratio": raw["vision_aspect_ratio"],
        "image_grid_pinpoints": [[width, height] for height, width in raw["image_grid_pinpoints"]],
        "mm_hidden_size": raw["vision_config"]["hidden_size"],
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "vision_config": {"num_attention_heads": raw["vision_config"]["num_attention_heads"]},
    }


def tensors(
    raw: dict[str, Any], *, naming: Naming = "hf", seed: int = 0, dtype: Any = np.float32, reward_head: bool = False
) -> dict[str, np.ndarray]:
    """Random weights, the same in every naming, of a scale that keeps activations near one.

    Namings: `hf` (module names of transformers 4.52 and later), `legacy` (the published llava-hf files), `saved` (what
    transformers 5 writes) and `original` (the published lmms-lab files).
    """
    text, tower = raw["text_config"], raw["vision_config"]
    vision, language, head, projector, newline = {
        "hf": (
            "model.vision_tower.vision_model.",
            "model.language_model.",
            "",
            "model.multi_modal_projector.linear_{}.",
            "model.",
        ),
        "legacy": (
            "vision_tower.vision_model.",
            "language_model.model.",
            "language_model.",
            "multi_modal_projector.linear_{}.",
            "",
        ),
        "saved": ("vision_tower.", "language_model.model.", "language_model.", "multi_modal_projector.linear_{}.", ""),
        "original": ("model.vision_tower.vision_tower.vision_model.", "model.", "", "model.mm_projector.{}.", "model."),
    }[naming]
    up, down = (projector.format(i) for i in ((0, 2) if naming == "original" else (1, 2)))
    h, d = text["hidden_size"], tower["hidden_size"]
    head_dim = h // text["num_attention_heads"]
    q, kv = text["num_attention_heads"] * head_dim, text["num_key_value_heads"] * head_dim
    patch, side = tower["patch_size"], tower["image_size"] // tower["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}embeddings.patch_embedding.weight": (d, 3, patch, patch),
        f"{vision}embeddings.patch_embedding.bias": (d,),
        f"{vision}embeddings.position_embedding.weight": (side * side, d),
        f"{vision}post_layernorm.weight": (d,),
        f"{vision}post_layernorm.bias": (d,),
        f"{newline}image_newline": (h,),
        f"{up}weight": (h, d),
        f"{down}weight": (h, h),
        f"{language}embed_tokens.weight": (text["vocab_size"], h),
        f"{language}norm.weight": (h,),
    }
    if raw.get("multimodal_projector_bias", True):
        shapes |= {f"{up}bias": (h,), f"{down}bias": (h,)}
    for i in range(tower["num_hidden_layers"]):
        layer = f"{vision}encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.weight": (d,), f"{layer}{norm}.bias": (d,)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (d, d), f"{layer}self_attn.{name}.bias": (d,)}
        hidden = tower["intermediate_size"]
        shapes |= {f"{layer}mlp.fc1.weight": (hidden, d), f"{layer}mlp.fc1.bias": (hidden,)}
        shapes |= {f"{layer}mlp.fc2.weight": (d, hidden), f"{layer}mlp.fc2.bias": (d,)}
    for i in range(text["num_hidden_layers"]):
        layer = f"{language}layers.{i}."
        shapes |= {f"{layer}input_layernorm.weight": (h,), f"{layer}post_attention_layernorm.weight": (h,)}
        for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes |= {f"{layer}self_attn.{name}.weight": (size, h), f"{layer}self_attn.{name}.bias": (size,)}
        shapes[f"{layer}self_attn.o_proj.weight"] = (h, q)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}mlp.{name}.weight"] = (text["intermediate_size"], h)
        shapes[f"{layer}mlp.down_proj.weight"] = (h, text["intermediate_size"])
    if not text["tie_word_embeddings"]:
        shapes[f"{head}lm_head.weight"] = (text["vocab_size"], h)
    if reward_head:
        shapes |= {"rm_head.dense.weight": (h, h), "rm_head.dense.bias": (h,)}
        shapes |= {"rm_head.out_proj.weight": (1, h), "rm_head.out_proj.bias": (1,)}
    rng = np.random.default_rng(seed)
    return {name: _values(rng, name, shape).astype(dtype) for name, shape in shapes.items()}


def checkpoint(
    directory: str | os.PathLike[str],
    raw: dict[str, Any] | None = None,
    *,
    naming: Naming = "hf",
    seed: int = 0,
    dtype: Any = np.float32,
    reward_head: bool = False,
    with_tokenizer: bool = True,
) -> Path:
    """A model directory with random weights: config, tokenizer with chat template, image processor, one safetensors file."""
    raw, directory = raw or config(), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype_name = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}.get(np.dtype(dtype), "bfloat16")
    stated = original_config(raw) if naming == "original" else {**raw, "dtype": dtype_name}
    (directory / "config.json").write_text(json.dumps(stated))
    save_file(
        tensors(raw, naming=naming, seed=seed, dtype=dtype, reward_head=reward_head),
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    if with_tokenizer:
        tokenizer(vision_tokens=naming != "original").save_pretrained(directory)
    if naming != "original":
        (directory / "preprocessor_config.json").write_text(json.dumps(image_processor(raw)))
    return directory


def image_processor(raw: dict[str, Any]) -> dict[str, Any]:
    """`preprocessor_config.json` with statistics that differ between channels, so that an exchange shows."""
    side = raw["vision_config"]["image_size"]
    return {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": raw["image_grid_pinpoints"],
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }


def tokenizer(*, vision_tokens: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte, then ChatML's three and, as in Hugging Face naming, `<image>` and `<video>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    special = SPECIAL_TOKENS if vision_tokens else SPECIAL_TOKENS[:3]
    byte_level.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model(directory: str | os.PathLike[str], raw: dict[str, Any] | None = None, **load: Any) -> LlavaOnevision:
    """A checkpoint written to `directory`, and loaded on one device."""
    return on_one_device(checkpoint(directory, raw), **load)


def on_one_device(directory: str | os.PathLike[str], **load: Any) -> LlavaOnevision:
    return load_model(directory, mesh=make_mesh({}, jax.devices()[:1]), **load)


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.normal(size=shape)
    if "norm" in name:
        return 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
    if "embed_tokens" in name or "position_embedding" in name or "newline" in name:
        return 0.3 * noise
    if len(shape) == 1:
        return 0.2 * noise
    return noise * np.prod(shape[1:]) ** -0.5


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
