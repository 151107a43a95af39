"""Qwen3-VL as `tests.families` has it: tiny checkpoints with random weights, and the inputs of transformers' model.

The tensor list below is written out from the released checkpoints; it is not taken from the table that it tests. Tokenizer and
inputs are those of `tests.families.qwen2_5_vl`, without its system message.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests.families import qwen2_5_vl
from tests.families.qwen2_5_vl import (  # noqa: F401 (some are used through this module)
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    id_inputs,
    media_ids,
    picture_inputs,
)

Naming = Literal["hf", "older"]
NAMINGS = ("hf", "older")
UNREAD_BY_TRANSFORMERS = ("older",)
PUBLISHED = "hf"  # in Hugging Face naming, and what an export is written in

PATCH = 8
# The published template of the Instruct models, without its tools.
CHAT_TEMPLATE = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' }}{%- if messages[0].content is string %}"
    "{{- messages[0].content }}{%- else %}{%- for content in messages[0].content %}{%- if 'text' in content %}"
    "{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- set image_count = namespace(value=0) %}{%- set video_count = namespace(value=0) %}"
    "{%- for message in messages %}{%- if message.role == 'user' %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for content in message.content %}"
    "{%- if content.type == 'image' or 'image' in content or 'image_url' in content %}"
    "{%- set image_count.value = image_count.value + 1 %}"
    "{%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif content.type == 'video' or 'video' in content %}{%- set video_count.value = video_count.value + 1 %}"
    "{%- if add_vision_id %}Video {{ video_count.value }}: {% endif -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role + '\n' }}{%- if message.content is string %}"
    "{{- message.content }}{%- else %}{%- for content_item in message.content %}{%- if 'text' in content_item %}"
    "{{- content_item.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

TOLERANCE = 2e-5
SHAPES = {
    "untied, 6 heads over 2 that are wider than the model, features for one layer": {},
    "tied, features for three layers": {
        "text": {
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 20,
            "rope_theta": 10_000.0,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 3, 3]},
        },
        "vision": {"num_heads": 3, "depth": 4, "deepstack_visual_indexes": [0, 2, 3], "num_position_embeddings": 25},
        "tie_word_embeddings": True,
    },
    "5 heads over 1, columns stop before rows, inner config tied": {
        "text": {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"rope_type": "default", "mrope_section": [5, 2, 1]},
            "tie_word_embeddings": True,
        },
        "vision": {"depth": 2, "deepstack_visual_indexes": [0, 1], "model_type": "qwen3_vl"},
        "tie_word_embeddings": False,
    },
}

# (height, width) of the pictures of a prompt
PICTURES = {
    "text only": [],
    "one block": [(16, 16)],
    "smaller than a block": [(11, 7)],
    "wide": [(30, 200)],
    "tall": [(333, 41)],
    "a strip": [(16, 2000)],
    "largest": [(300, 400)],
    "two of unlike aspect": [(50, 20), (25, 100)],
    "three, one square": [(64, 64), (10, 300), (90, 45)],
}
FRAMES = (1, 2, 5)
ROW = (384, 320, 320)  # slots, blocks and visual tokens: room for the largest of these
LIMITS = {"shortest_edge": 4 * 256, "longest_edge": 128 * 256}

# At the published geometry: patches of 16, a table of 48 x 48 positions. Few, narrow layers.
PUBLISHED_GEOMETRY = {
    "vision": {
        "patch_size": 16,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_heads": 3,
        "depth": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [0, 1],
    },
    "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 16},
}
# (height, width) of a lone picture -> its visual tokens (`model_families.md` of the project's facts, and by hand).
TOKENS = {
    (480, 640): 300,
    (336, 500): 160,
    (1080, 1920): 2040,
    (32, 32): 64,
    (100, 200): 72,
    (800, 800): 625,
}
# Of frames of 128 x 72, by hand. Only the image processor's file is there, whose limits count for all frames together: 3 frames
# are enlarged to 224 x 128, because they have less than 65536 pixels, and 8 become 128 x 64.
VIDEO_TOKENS = {3: 2 * 28, 8: 4 * 8}
QUICK_PICTURES = ("two", "100 high, 200 wide")
QUICK_FRAMES = (3,)
TOWER_LINEARS, TOWER_MODULES = 6, 4
PROJECTOR_LINEARS = 4
UNREAD_FILES: dict[str, str] = {}  # sizes of frames depend on the file for videos


def config(*, text: dict | None = None, vision: dict | None = None, **top: Any) -> dict[str, Any]:
    """A Hugging Face `config.json`: 3 vision layers with 3 heads, 2 decoder layers with 6 heads over 2 key-value heads."""
    tower = {
        "model_type": "qwen3_vl_vision",
        "hidden_size": 36,
        "intermediate_size": 52,
        "depth": 3,
        "num_heads": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 49,
        "deepstack_visual_indexes": [1],
    }
    decoder = {
        "model_type": "qwen3_vl_text",
        "vocab_size": 266,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 5_000_000.0,
        "attention_bias": False,
        "max_position_embeddings": 4096,
    }
    tower |= vision or {}
    decoder |= text or {}
    tower["out_hidden_size"] = decoder["hidden_size"]
    pairs = decoder["head_dim"] // 2
    sections = [pairs - 2 * (5 * pairs // 16), 5 * pairs // 16, 5 * pairs // 16]  # as in published files
    rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": sections}
    decoder.setdefault("rope_scaling", rope)
    raw = {
        "model_type": "qwen3_vl",
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "dtype": "float32",
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": VIDEO_TOKEN,
        "vision_start_token_id": 259,
        "vision_end_token_id": 260,
        "tie_word_embeddings": decoder.get("tie_word_embeddings", False),
        "text_config": decoder,
        "vision_config": tower,
    }
    return copy.deepcopy(raw | top)


def shapes(raw: dict[str, Any], reward_head: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint in the naming of published files."""
    text, tower = raw["text_config"], raw["vision_config"]
    h, d, hidden = text["hidden_size"], tower["hidden_size"], tower["intermediate_size"]
    dim = text["head_dim"]
    q, kv = text["num_attention_heads"] * dim, text["num_key_value_heads"] * dim

    def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    found: dict[str, tuple[int, ...]] = {
        "model.visual.patch_embed.proj.weight": (d, 3, 2, tower["patch_size"], tower["patch_size"]),
        "model.visual.patch_embed.proj.bias": (d,),
        "model.visual.pos_embed.weight": (tower["num_position_embeddings"], d),
        "model.language_model.embed_tokens.weight": (text["vocab_size"], h),
        "model.language_model.norm.weight": (h,),
    }
    found |= norm("model.visual.merger.norm", d)
    mergers = [f"deepstack_merger_list.{i}" for i in range(len(tower["deepstack_visual_indexes"]))]
    for name in ("merger", *mergers):
        found |= norm(f"model.visual.{name}.norm", d if name == "merger" else 4 * d)
        found |= linear(f"model.visual.{name}.linear_fc1", 4 * d, 4 * d) | linear(f"model.visual.{name}.linear_fc2", h, 4 * d)
    for i in range(tower["depth"]):
        layer = f"model.visual.blocks.{i}."
        found |= norm(f"{layer}norm1", d) | norm(f"{layer}norm2", d)
        found |= linear(f"{layer}attn.qkv", 3 * d, d) | linear(f"{layer}attn.proj", d, d)
        found |= linear(f"{layer}mlp.linear_fc1", hidden, d) | linear(f"{layer}mlp.linear_fc2", d, hidden)
    for i in range(text["num_hidden_layers"]):
        layer = f"model.language_model.layers.{i}."
        found |= {f"{layer}input_layernorm.weight": (h,), f"{layer}post_attention_layernorm.weight": (h,)}
        for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            found[f"{layer}self_attn.{name}.weight"] = (size, h)
        found |= {f"{layer}self_attn.q_norm.weight": (dim,), f"{layer}self_attn.k_norm.weight": (dim,)}
        found[f"{layer}self_attn.o_proj.weight"] = (h, q)
        for name in ("gate_proj", "up_proj"):
            found[f"{layer}mlp.{name}.weight"] = (text["intermediate_size"], h)
        found[f"{layer}mlp.down_proj.weight"] = (h, text["intermediate_size"])
    if not raw["tie_word_embeddings"]:
        found["lm_head.weight"] = (text["vocab_size"], h)
    if reward_head:
        found |= {"rm_head.dense.weight": (h, h), "rm_head.dense.bias": (h,)}
        found |= {"rm_head.out_proj.weight": (1, h), "rm_head.out_proj.bias": (1,)}
    return found


def tensors(
    raw: dict[str, Any], *, naming: Naming = "hf", seed: int = 0, dtype: Any = np.float32, reward_head: bool = False
) -> dict[str, np.ndarray]:
    """Random weights, the same in every naming, of a scale that keeps activations near one.

    Namings: `hf` (the published files, and transformers' modules) and `older` (as programs that build on older classes have).
    """
    rng = np.random.default_rng(seed)
    found = {name: _values(rng, name, shape).astype(dtype) for name, shape in shapes(raw, reward_head).items()}
    return {_older_name(name): value for name, value in found.items()} if naming == "older" else found


def _older_name(name: str) -> str:
    name = name.replace("model.visual.", "visual.").replace("model.language_model.", "language_model.model.")
    return f"language_model.{name}" if name.startswith("lm_head.") else name


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.normal(size=shape)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if "embed_tokens" in name or "pos_embed" in name:
        return 0.3 * noise
    if len(shape) == 1:
        return 0.2 * noise
    return noise * np.prod(shape[1:]) ** -0.5


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
    """A model directory with random weights: config, tokenizer with chat template, processors, one safetensors file."""
    raw, directory = raw or config(), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype_name = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}.get(np.dtype(dtype), "bfloat16")
    (directory / "config.json").write_text(json.dumps({**raw, "dtype": dtype_name}))
    stored = tensors(raw, naming=naming, seed=seed, dtype=dtype, reward_head=reward_head)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    if with_tokenizer:
        tokenizer().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(image_processor(raw)))
    return directory


def image_processor(raw: dict[str, Any]) -> dict[str, Any]:
    """`preprocessor_config.json` with statistics that differ between channels, so that an exchange shows."""
    tower = raw["vision_config"]
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen3VLProcessor",
        "size": LIMITS if tower["patch_size"] == PATCH else {"shortest_edge": 65536, "longest_edge": 16777216},
        "image_mean": [0.5, 0.48, 0.41],
        "image_std": [0.5, 0.45, 0.52],
        "patch_size": tower["patch_size"],
        "temporal_patch_size": 2,
        "merge_size": tower["spatial_merge_size"],
    }


def tokenizer(template: str = CHAT_TEMPLATE):
    """One token per byte, then ChatML's three and the four of media."""
    found = qwen2_5_vl.tokenizer()
    found.chat_template = template
    return found


def frame_patches(config: Any, frames: list) -> tuple[np.ndarray, list[int]]:
    """As `qwen2_5_vl.frame_patches`, of frames that have the size that transformers' video processor gives them."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    geometry = config.geometry
    sides = {"temporal_factor": geometry.frames, "factor": geometry.side}
    limits = {"min_pixels": geometry.video_min_pixels, "max_pixels": geometry.video_max_pixels}
    count = max(len(frames), 2)  # transformers refuses a single frame
    height, width = smart_resize(count, frames[0].height, frames[0].width, **sides, **limits)
    free = dataclasses.replace(geometry, video_min_pixels=1, video_max_pixels=1 << 40)
    resized = [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    return qwen2_5_vl.frame_patches(dataclasses.replace(config, geometry=free), resized)


def frame_inputs(config: Any, frames: list, ids: np.ndarray, positions: np.ndarray | None) -> dict[str, Any]:
    """As `qwen2_5_vl.frame_inputs`, but always with the positions that transformers makes."""
    import torch

    patches, grid = frame_patches(config, frames)
    is_video = ids == config.image_token
    return {
        "input_ids": np.where(is_video, VIDEO_TOKEN, ids),
        "pixel_values_videos": torch.tensor(patches),
        "video_grid_thw": torch.tensor([grid]),
        "mm_token_type_ids": torch.tensor(2 * is_video[None]).int(),
    }


def draw_config(rng: np.random.Generator):
    """transformers' config of a random shape."""
    from transformers import Qwen3VLConfig

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    heads, kv_heads, pairs = number(1, 3), number(1, 3), number(3, 9)
    vision_heads, layers, text_layers = number(1, 5), number(1, 4), number(1, 4)
    rows = number(0, pairs)
    columns = number(0, pairs - rows)
    width, patch = number(20, 60), number(4, 9)
    tapped = sorted(map(int, rng.permutation(layers)[: number(1, min(layers, text_layers))]))
    vision = dict(
        hidden_size=vision_heads * 4 * number(1, 3),
        intermediate_size=number(20, 70),
        depth=layers,
        num_heads=vision_heads,
        patch_size=patch,
        num_position_embeddings=number(2, 9) ** 2,
        deepstack_visual_indexes=tapped,
        out_hidden_size=width,
        initializer_range=0.1,
    )
    text = dict(
        vocab_size=263 + number(0, 9),
        hidden_size=width,
        intermediate_size=number(30, 90),
        num_hidden_layers=text_layers,
        num_attention_heads=heads * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * pairs,
        rms_norm_eps=float(rng.choice([1e-6, 1e-5])),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(rng.choice([1e4, 5e5, 5e6])),
            "mrope_section": [pairs - rows - columns, rows, columns],
        },
        initializer_range=0.15,
    )
    return Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=259,
        vision_end_token_id=260,
        tie_word_embeddings=bool(rng.integers(2)),
    )


def draw_model(rng: np.random.Generator, directory):
    """A checkpoint as transformers writes it, in a random dtype; returns transformers' model of it in float32."""
    import torch
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    drawn = draw_config(rng)
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = Qwen3VLForConditionalGeneration(drawn)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "pos_embed" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(getattr(torch, str(rng.choice(["float32", "bfloat16", "float16"])))).save_pretrained(directory)
    side = 4 * drawn.vision_config.patch_size**2
    Qwen2VLImageProcessorPil(
        patch_size=drawn.vision_config.patch_size,
        size={"shortest_edge": side * int(rng.integers(1, 5)), "longest_edge": side * int(rng.integers(8, 33))},
        image_mean=[0.5, 0.48, 0.41] if rng.integers(2) else [0.5, 0.5, 0.5],
    ).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()


def opening(model, directory: str | os.PathLike[str], prompt: str, pictures: list) -> tuple[str, dict[str, Any]]:
    """As for `qwen2_5_vl`, without a system message."""
    text, pixels = qwen2_5_vl.opening(model, directory, prompt, pictures)
    return text.removeprefix("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"), pixels
