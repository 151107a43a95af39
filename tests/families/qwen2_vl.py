"""Qwen2-VL as `tests.families` has it: tiny checkpoints with random weights, and the inputs of transformers' model.

Tokenizer, inputs and the language model's tensors are those of `tests.families.qwen2_5_vl`; the tower's are written out from
the released checkpoints.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from tests.families import qwen2_5_vl
from tests.families.qwen2_5_vl import (  # noqa: F401 (used through this module)
    FRAMES,
    IMAGE_TOKEN,
    PICTURES,
    QUICK_FRAMES,
    QUICK_PICTURES,
    ROW,
    TOKENS,
    UNREAD_FILES,
    VIDEO_TOKEN,
    VIDEO_TOKENS,
    id_inputs,
    media_ids,
    opening,
    picture_inputs,
    tokenizer,
)

Naming = Literal["hf", "modules"]
NAMINGS = ("hf", "modules")
PUBLISHED = "hf"  # in Hugging Face naming, and what an export is written in

TOLERANCE = 2e-5
SHAPES = {
    "untied, 6 heads over 2": {},
    "tied, at the top of config.json": {
        "text": {
            "tie_word_embeddings": True,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "rope_theta": 10_000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 4, 2]},
        },
        "vision": {"depth": 1, "mlp_ratio": 2},
        "flat": True,
    },
    "5 heads over 1, another activation": {
        "text": {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"rope_type": "default", "mrope_section": [0, 1, 3]},
        },
        "vision": {"depth": 2, "hidden_act": "gelu"},
    },
}
PUBLISHED_GEOMETRY = {
    "vision": {"patch_size": 14, "embed_dim": 24, "num_heads": 3, "depth": 2},
    "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1},
}
TOWER_LINEARS, TOWER_MODULES = 6, 4
PROJECTOR_LINEARS = 2


def frame_inputs(config: Any, frames: list, ids: np.ndarray, positions: np.ndarray | None) -> dict[str, Any]:
    """As `qwen2_5_vl.frame_inputs`, without the seconds of a patch, which no position depends on."""
    found = qwen2_5_vl.frame_inputs(config, frames, ids, positions)
    return {name: value for name, value in found.items() if name != "second_per_grid_ts"}


def config(*, text: dict | None = None, vision: dict | None = None, flat: bool = False, **top: Any) -> dict[str, Any]:
    """A Hugging Face `config.json`: 3 vision layers with 3 heads, 2 decoder layers with 6 heads over 2 key-value heads.

    `flat`: the language model's settings at its top, as in published files.
    """
    raw = qwen2_5_vl.config(text=text, flat=flat)
    inner = raw if flat else raw["text_config"]
    raw["model_type"], inner["model_type"] = "qwen2_vl", "qwen2_vl" if flat else "qwen2_vl_text"
    raw["architectures"] = ["Qwen2VLForConditionalGeneration"]
    raw["vision_config"] = {
        "model_type": "qwen2_vl",
        "depth": 3,
        "embed_dim": 36,
        "hidden_size": inner["hidden_size"],
        "hidden_act": "quick_gelu",
        "mlp_ratio": 3,
        "num_heads": 3,
        "in_channels": 3,
        "patch_size": qwen2_5_vl.PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    } | (vision or {})
    return copy.deepcopy(raw | top)


def shapes(raw: dict[str, Any], reward_head: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint in the naming of published files."""
    tower, text = raw["vision_config"], raw.get("text_config", raw)
    d, h, hidden = tower["embed_dim"], text["hidden_size"], tower["embed_dim"] * tower["mlp_ratio"]
    found: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (d, 3, 2, tower["patch_size"], tower["patch_size"]),
        "visual.merger.ln_q.weight": (d,),
        "visual.merger.ln_q.bias": (d,),
        "visual.merger.mlp.0.weight": (4 * d, 4 * d),
        "visual.merger.mlp.0.bias": (4 * d,),
        "visual.merger.mlp.2.weight": (h, 4 * d),
        "visual.merger.mlp.2.bias": (h,),
    }
    for i in range(tower["depth"]):
        layer = f"visual.blocks.{i}."
        for norm in ("norm1", "norm2"):
            found |= {f"{layer}{norm}.weight": (d,), f"{layer}{norm}.bias": (d,)}
        matrices = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (hidden, d), "mlp.fc2": (d, hidden)}
        for name, shape in matrices.items():
            found |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    other = raw | {"vision_config": qwen2_5_vl.config()["vision_config"]}
    language = qwen2_5_vl.shapes(other, reward_head)
    return found | {name: shape for name, shape in language.items() if not name.startswith("visual.")}


def tensors(
    raw: dict[str, Any], *, naming: Naming = "hf", seed: int = 0, dtype: Any = np.float32, reward_head: bool = False
) -> dict[str, np.ndarray]:
    """Random weights, the same in every naming, of a scale that keeps activations near one. Namings as for `qwen2_5_vl`."""
    rng = np.random.default_rng(seed)
    found = {name: _values(rng, name, shape).astype(dtype) for name, shape in shapes(raw, reward_head).items()}
    if naming == "hf":
        return found
    return {_module_name(name): value for name, value in found.items()}


def _module_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.normal(size=shape)
    if ("norm" in name or "ln_q" in name) and name.endswith("weight"):
        return 1 + 0.2 * noise
    if "embed_tokens" in name:
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
    settings = qwen2_5_vl.image_processor(raw) | {"processor_class": "Qwen2VLProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return directory


def draw_config(rng: np.random.Generator):
    """transformers' config of a random shape."""
    from transformers import Qwen2VLConfig

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    heads, kv_heads, pairs = number(1, 3), number(1, 3), number(3, 9)
    vision_heads = number(1, 5)
    rows = number(0, pairs)
    columns = number(0, pairs - rows)
    tied = bool(rng.integers(2))
    width = heads * kv_heads * 2 * pairs
    vision = dict(
        embed_dim=vision_heads * 4 * number(1, 3),
        hidden_size=width,
        mlp_ratio=number(1, 5),
        depth=number(1, 4),
        num_heads=vision_heads,
        patch_size=number(4, 9),
        initializer_range=0.1,
    )
    text = dict(
        vocab_size=263 + number(0, 9),
        hidden_size=width,
        intermediate_size=number(30, 90),
        num_hidden_layers=number(1, 4),
        num_attention_heads=heads * kv_heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=float(rng.choice([1e-6, 1e-5])),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(rng.choice([1e4, 1e5, 1e6])),
            "mrope_section": [pairs - rows - columns, rows, columns],
        },
        tie_word_embeddings=tied,
        initializer_range=0.15,
    )
    return Qwen2VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=259,
        vision_end_token_id=260,
        tie_word_embeddings=tied,
    )


def draw_model(rng: np.random.Generator, directory):
    """A checkpoint as transformers writes it, in a random dtype; returns transformers' model of it in float32."""
    import torch
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    drawn = draw_config(rng)
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = Qwen2VLForConditionalGeneration(drawn)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(getattr(torch, str(rng.choice(["float32", "bfloat16", "float16"])))).save_pretrained(directory)
    side = 4 * drawn.vision_config.patch_size**2
    Qwen2VLImageProcessorPil(
        patch_size=drawn.vision_config.patch_size,
        size={"shortest_edge": side * int(rng.integers(1, 5)), "longest_edge": side * int(rng.integers(8, 33))},
        image_mean=[0.5, 0.48, 0.41] if rng.integers(2) else [0.48145466, 0.4578275, 0.40821073],
    ).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return Qwen2VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
