"""LLaVA-OneVision-1.5 as `tests.families` has it: tiny checkpoints with random weights, and the inputs of the oracle.

transformers has no class of this family, so the oracle is `rice_reference`, which is known to its auto classes as soon as a
checkpoint has been written here. Tokenizer and pixels are those of `tests.families.qwen2_5_vl`, with patches of one frame. The
tensor list is written out from the description of the vendor's code.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from tests.families import qwen2_5_vl
from tests.families.qwen2_5_vl import (  # noqa: F401 (used through this module)
    IMAGE_TOKEN,
    PICTURES,
    QUICK_PICTURES,
    TOKENS,
    UNREAD_FILES,
    VIDEO_TOKEN,
    frame_inputs,
    media_ids,
    opening,
    picture_inputs,
    tokenizer,
)

Naming = Literal["hf", "older"]
NAMINGS = ("hf", "older")
UNREAD_BY_TRANSFORMERS = ("older",)
PUBLISHED = "hf"  # in Hugging Face naming, and what an export is written in

TOLERANCE = 2e-5
SHAPES = {
    "untied, 6 heads over 2 that are wider than the model": {},
    "tied": {
        "text": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 20, "rope_theta": 10_000.0},
        "vision": {"num_heads": 3, "depth": 1},
        "tie_word_embeddings": True,
    },
    "5 heads over 1, another epsilon": {
        "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
        "vision": {"depth": 2},
    },
}
FRAMES = ()  # videos are refused
VIDEO_TOKENS: dict[int, int] = {}
QUICK_FRAMES = ()
ROW = (384, 320, 320)  # slots, blocks and visual tokens: room for the largest of these

PUBLISHED_GEOMETRY = {
    "vision": {"patch_size": 14, "hidden_size": 24, "intermediate_size": 40, "num_heads": 3, "depth": 2},
    "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 16},
}
TOWER_LINEARS, TOWER_MODULES = 6, 4
PROJECTOR_LINEARS = 2


def config(*, text: dict | None = None, vision: dict | None = None, **top: Any) -> dict[str, Any]:
    """A Hugging Face `config.json`: 3 vision layers with 3 heads, 2 decoder layers with 6 heads over 2 key-value heads."""
    tower = {
        "model_type": "rice_vit",
        "hidden_size": 36,
        "intermediate_size": 52,
        "depth": 3,
        "num_heads": 3,
        "hidden_act": "gelu",
        "in_channels": 3,
        "patch_size": qwen2_5_vl.PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "layer_norm_eps": 1e-5,
    }
    decoder = {
        "model_type": "LLaVAOneVision1_5_text",
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
    tower["text_hidden_size"] = decoder["hidden_size"]
    raw = {
        "model_type": "llavaonevision1_5",
        "architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"],
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
    visual, language = "model.visual.", "model.language_model."
    found: dict[str, tuple[int, ...]] = {
        f"{visual}class_embedding": (d,),
        f"{visual}class_pos_emb": (1, d // tower["num_heads"] // 2),
        f"{visual}patch_embed.proj.weight": (d, 3, tower["patch_size"], tower["patch_size"]),
        f"{language}embed_tokens.weight": (text["vocab_size"], h),
        f"{language}norm.weight": (h,),
    }
    norms = ["pre_layernorm", "merger.ln_q"]
    matrices = {"merger.mlp.0": (4 * d, 4 * d), "merger.mlp.2": (h, 4 * d)}
    for i in range(tower["depth"]):
        norms += [f"blocks.{i}.norm1", f"blocks.{i}.norm2"]
        matrices |= {f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d)}
        matrices |= {f"blocks.{i}.mlp.fc1": (hidden, d), f"blocks.{i}.mlp.fc2": (d, hidden)}
    for name in norms:
        found |= {f"{visual}{name}.weight": (d,), f"{visual}{name}.bias": (d,)}
    for name, shape in matrices.items():
        found |= {f"{visual}{name}.weight": shape, f"{visual}{name}.bias": shape[:1]}
    for i in range(text["num_hidden_layers"]):
        layer = f"{language}layers.{i}."
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

    Namings: `hf` (the vendor's modules) and `older` (with the language model's names at the top).
    """
    rng = np.random.default_rng(seed)
    found = {name: _values(rng, name, shape).astype(dtype) for name, shape in shapes(raw, reward_head).items()}
    if naming == "hf":
        return found
    older = lambda name: name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
    return {older(name): value for name, value in found.items()}


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.normal(size=shape)
    if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
        return 1 + 0.2 * noise
    if "embed_tokens" in name:
        return 0.3 * noise
    if "class_" in name:
        return noise
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
    if importlib.util.find_spec("torch"):
        from tests.families.rice_reference import register

        register()
    raw, directory = raw or config(), Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype_name = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}.get(np.dtype(dtype), "bfloat16")
    (directory / "config.json").write_text(json.dumps({**raw, "dtype": dtype_name}))
    stored = tensors(raw, naming=naming, seed=seed, dtype=dtype, reward_head=reward_head)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    if with_tokenizer:
        tokenizer().save_pretrained(directory)
    settings = qwen2_5_vl.image_processor(raw) | {"temporal_patch_size": 1}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return directory


def id_inputs(ids: np.ndarray) -> dict[str, Any]:
    """Nothing: positions have one axis."""
    return {}


def draw_config(rng: np.random.Generator):
    """The oracle's config of a random shape."""
    from tests.families.rice_reference import Config, register

    register()

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    heads, kv_heads, vision_heads = number(1, 3), number(1, 3), number(1, 5)
    width = number(20, 60)
    vision = dict(
        hidden_size=vision_heads * 4 * number(1, 3),
        intermediate_size=number(20, 70),
        depth=number(1, 4),
        num_heads=vision_heads,
        patch_size=number(4, 9),
        spatial_merge_size=2,
        text_hidden_size=width,
        layer_norm_eps=1e-5,
    )
    text = dict(
        vocab_size=263 + number(0, 9),
        hidden_size=width,
        intermediate_size=number(30, 90),
        num_hidden_layers=number(1, 4),
        num_attention_heads=heads * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * number(3, 9),
        rms_norm_eps=float(rng.choice([1e-6, 1e-5])),
        rope_parameters={"rope_type": "default", "rope_theta": float(rng.choice([1e4, 5e5, 5e6]))},
        initializer_range=0.15,
    )
    return Config(vision, text, image_token_id=IMAGE_TOKEN, tie_word_embeddings=bool(rng.integers(2)))


def draw_model(rng: np.random.Generator, directory):
    """A checkpoint as transformers writes it, in a random dtype; returns the oracle's model of it in float32."""
    import torch
    from transformers import Qwen2VLImageProcessorPil

    from tests.families.rice_reference import Model

    drawn = draw_config(rng)
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = Model(drawn)
    for name, parameter in model.named_parameters():
        scale = 1.0 if "class_" in name else 0.1
        if "norm" not in name and "ln_q" not in name:
            torch.nn.init.normal_(parameter, std=scale)
    model.to(getattr(torch, str(rng.choice(["float32", "bfloat16", "float16"])))).save_pretrained(directory)
    side = 4 * drawn.vision_config.patch_size**2
    Qwen2VLImageProcessorPil(
        patch_size=drawn.vision_config.patch_size,
        temporal_patch_size=1,
        size={"shortest_edge": side * int(rng.integers(1, 5)), "longest_edge": side * int(rng.integers(8, 33))},
        image_mean=[0.5, 0.48, 0.41] if rng.integers(2) else [0.48145466, 0.4578275, 0.40821073],
    ).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return Model.from_pretrained(directory, dtype=torch.float32).eval()
