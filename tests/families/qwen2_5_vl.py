"""Qwen2.5-VL as `tests.families` has it: tiny checkpoints with random weights, and the inputs of transformers' model.

The tensor list below is written out from the released checkpoints; it is not taken from the table that it tests.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

Naming = Literal["hf", "modules"]
NAMINGS = ("hf", "modules")
PUBLISHED = "hf"  # in Hugging Face naming, and what an export is written in

PATCH = 7
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL_TOKENS = (*CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IMAGE_TOKEN, VIDEO_TOKEN = 261, 262
# The published template, without its tools.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TOLERANCE = 2e-5
SHAPES = {
    "untied, 6 heads over 2, windows of 2 x 2": {},
    "tied, all layers in windows, at the top of config.json": {
        "text": {
            "tie_word_embeddings": True,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "rope_theta": 10_000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 4, 2]},
        },
        "vision": {"num_heads": 3, "fullatt_block_indexes": []},
        "flat": True,
    },
    "5 heads over 1, windows of 4 x 4, all layers in frames but one": {
        "text": {
            "hidden_size": 40,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"rope_type": "default", "mrope_section": [0, 1, 3]},
        },
        "vision": {"window_size": 56, "depth": 4, "fullatt_block_indexes": [0, 2, 3]},
    },
}

# (height, width) of the pictures of a prompt
PICTURES = {
    "text only": [],
    "one block": [(14, 14)],
    "smaller than a block": [(11, 7)],
    "wide": [(30, 200)],
    "tall": [(333, 41)],
    "a strip": [(14, 2000)],
    "largest": [(300, 400)],
    "two of unlike aspect": [(50, 20), (25, 100)],
    "three, one square": [(64, 64), (10, 300), (90, 45)],
}
FRAMES = (1, 2, 5)
ROW = (384, 320, 320)  # slots, blocks and visual tokens: room for the largest of these
LIMITS = {"min_pixels": 4 * 196, "max_pixels": 128 * 196}

# At the published geometry: patches of 14, windows of 4 x 4 blocks. Few, narrow layers.
PUBLISHED_GEOMETRY = {
    "vision": {"patch_size": 14, "window_size": 112, "hidden_size": 24, "intermediate_size": 40, "num_heads": 3, "depth": 2},
    "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1},
}
# (height, width) of a lone picture -> its visual tokens (`model_families.md` of the project's facts, and by hand).
TOKENS = {
    (480, 640): 391,
    (500, 336): 216,
    (1080, 1920): 2691,
    (32, 32): 4,
    (100, 200): 28,
    (800, 800): 841,
}
VIDEO_TOKENS = {3: 2 * 15, 8: 4 * 15}  # frames of 128 x 72, which become 140 x 84 -> visual tokens
QUICK_PICTURES = ("two", "100 high, 200 wide")
QUICK_FRAMES = (3,)
TOWER_LINEARS, TOWER_MODULES = 7, 5
PROJECTOR_LINEARS = 2
UNREAD_FILES: dict[str, str] = {}  # sizes of frames depend on the file for videos


def config(*, text: dict | None = None, vision: dict | None = None, flat: bool = False, **top: Any) -> dict[str, Any]:
    """A Hugging Face `config.json`: 3 vision layers with 3 heads, 2 decoder layers with 6 heads over 2 key-value heads.

    `flat`: the language model's settings at its top, as in published files.
    """
    tower = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 36,
        "intermediate_size": 52,
        "depth": 3,
        "num_heads": 3,
        "hidden_act": "silu",
        "in_channels": 3,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 28,
        "fullatt_block_indexes": [1],
    }
    decoder = {
        "model_type": "qwen2_5_vl_text",
        "vocab_size": 266,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "use_sliding_window": False,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    tower |= vision or {}
    decoder |= text or {}
    tower["out_hidden_size"] = decoder["hidden_size"]
    pairs = decoder["hidden_size"] // decoder["num_attention_heads"] // 2
    sections = [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]  # as in published files
    decoder.setdefault("rope_scaling", {"type": "mrope", "mrope_section": sections})
    raw = {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "dtype": "float32",
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": VIDEO_TOKEN,
        "vision_start_token_id": 259,
        "vision_end_token_id": 260,
        "tie_word_embeddings": decoder["tie_word_embeddings"],
        "vision_config": tower,
    }
    if flat:
        raw = {**decoder, **raw}
    else:
        raw["text_config"] = decoder
    return copy.deepcopy(raw | top)


def shapes(raw: dict[str, Any], reward_head: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint in the naming of published files."""
    text, tower = raw.get("text_config", raw), raw["vision_config"]
    h, d, hidden = text["hidden_size"], tower["hidden_size"], tower["intermediate_size"]
    head_dim = h // text["num_attention_heads"]
    q, kv = text["num_attention_heads"] * head_dim, text["num_key_value_heads"] * head_dim
    found: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (d, 3, 2, tower["patch_size"], tower["patch_size"]),
        "visual.merger.ln_q.weight": (d,),
        "visual.merger.mlp.0.weight": (4 * d, 4 * d),
        "visual.merger.mlp.0.bias": (4 * d,),
        "visual.merger.mlp.2.weight": (h, 4 * d),
        "visual.merger.mlp.2.bias": (h,),
        "model.embed_tokens.weight": (text["vocab_size"], h),
        "model.norm.weight": (h,),
    }
    for i in range(tower["depth"]):
        layer = f"visual.blocks.{i}."
        found |= {f"{layer}norm1.weight": (d,), f"{layer}norm2.weight": (d,)}
        found |= {f"{layer}attn.qkv.weight": (3 * d, d), f"{layer}attn.qkv.bias": (3 * d,)}
        found |= {f"{layer}attn.proj.weight": (d, d), f"{layer}attn.proj.bias": (d,)}
        for name in ("gate_proj", "up_proj"):
            found |= {f"{layer}mlp.{name}.weight": (hidden, d), f"{layer}mlp.{name}.bias": (hidden,)}
        found |= {f"{layer}mlp.down_proj.weight": (d, hidden), f"{layer}mlp.down_proj.bias": (d,)}
    for i in range(text["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        found |= {f"{layer}input_layernorm.weight": (h,), f"{layer}post_attention_layernorm.weight": (h,)}
        for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            found |= {f"{layer}self_attn.{name}.weight": (size, h), f"{layer}self_attn.{name}.bias": (size,)}
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

    Namings: `hf` (the published files, and what transformers 5 writes) and `modules` (module names of transformers 4.52 and
    later, which many fine-tuned models have).
    """
    rng = np.random.default_rng(seed)
    found = {name: _values(rng, name, shape).astype(dtype) for name, shape in shapes(raw, reward_head).items()}
    return {_module_name(name): value for name, value in found.items()} if naming == "modules" else found


def _module_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


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
    limits = LIMITS if tower["patch_size"] == PATCH else {"min_pixels": 3136, "max_pixels": 12845056}
    return limits | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "image_mean": [0.481, 0.458, 0.408],
        "image_std": [0.269, 0.261, 0.276],
        "resample": 3,
        "patch_size": tower["patch_size"],
        "temporal_patch_size": 2,
        "merge_size": tower["spatial_merge_size"],
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then ChatML's three and Qwen2.5-VL's four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.normal(size=shape)
    if "norm" in name or "ln_q" in name:
        return 1 + 0.2 * noise
    if "embed_tokens" in name:
        return 0.3 * noise
    if len(shape) == 1:
        return 0.2 * noise
    return noise * np.prod(shape[1:]) ** -0.5


def media_ids(tokenizer) -> dict[str, int]:
    """Arguments of `config` for the media tokens of a tokenizer."""
    return {f"{kind}_token_id": tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}


def picture_inputs(directory: str | os.PathLike[str], pictures: list) -> dict[str, Any]:
    """What transformers' model takes beside ids for a prompt with these pictures. Needs torch."""
    from transformers import Qwen2VLImageProcessorPil

    return dict(Qwen2VLImageProcessorPil.from_pretrained(directory)(images=pictures, return_tensors="pt"))


def id_inputs(ids: np.ndarray) -> dict[str, Any]:
    """What transformers' model takes beside pixels and ids, [1, N]: which tokens are images'. Without it, it would silently
    take positions of one axis."""
    import torch

    return {"mm_token_type_ids": torch.tensor(ids == IMAGE_TOKEN).int()}


def frame_patches(config: Any, frames: list) -> tuple[np.ndarray, list[int]]:
    """(float32[patches, 3 * 2 * side * side] of a video, the numbers of its patches of time, rows and columns).

    From the patches of transformers' image processor: those of an image hold it twice, and those of a video two frames.
    """
    from transformers import Qwen2VLImageProcessorPil

    geometry, vision = config.geometry, config.vision
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.merge,
        size={"shortest_edge": geometry.video_min_pixels, "longest_edge": geometry.video_max_pixels},
        image_mean=list(vision.image_mean),
        image_std=list(vision.image_std),
    )
    found = processor(images=[*frames, *frames[-1:] * (len(frames) % 2)], return_tensors="np")
    (_, rows, columns), times = found["image_grid_thw"][0], len(found["image_grid_thw"]) // 2
    of_frames = found["pixel_values"].reshape(times, 2, rows * columns, 3, 2, vision.patch_size, vision.patch_size)
    patches = np.stack([of_frames[:, 0, :, :, 0], of_frames[:, 1, :, :, 0]], axis=3)
    return patches.reshape(times * rows * columns, -1), [times, int(rows), int(columns)]


def frame_inputs(config: Any, frames: list, ids: np.ndarray, positions: np.ndarray | None) -> dict[str, Any]:
    """transformers' inputs for a prompt of ids, [N], about a video of which every frame is taken, at 8 frames a second.

    Without `positions`, [N, 3], transformers makes its own, which are right only for videos that are short for their size.
    """
    import torch

    patches, grid = frame_patches(config, frames)
    is_video = ids == config.image_token
    inputs = {"input_ids": np.where(is_video, VIDEO_TOKEN, ids), "pixel_values_videos": torch.tensor(patches)}
    inputs["video_grid_thw"] = torch.tensor([grid])
    if positions is None:
        seconds = torch.tensor([2 / 8])
        return inputs | {"mm_token_type_ids": torch.tensor(2 * is_video[None]).int(), "second_per_grid_ts": seconds}
    return inputs | {"position_ids": torch.tensor(positions.T[:, None]).long()}


def draw_config(rng: np.random.Generator):
    """transformers' config of a random shape."""
    from transformers import Qwen2_5_VLConfig

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    heads, kv_heads, pairs = number(1, 3), number(1, 3), number(3, 9)
    vision_heads, layers = number(1, 5), number(1, 4)
    rows = number(0, pairs)
    columns = number(0, pairs - rows)
    tied = bool(rng.integers(2))
    width = heads * kv_heads * 2 * pairs
    patch = number(4, 9)
    vision = dict(
        hidden_size=vision_heads * 4 * number(1, 3),
        intermediate_size=number(20, 70),
        depth=layers,
        num_heads=vision_heads,
        patch_size=patch,
        window_size=2 * patch * number(1, 4),
        fullatt_block_indexes=[layer for layer in range(layers) if rng.integers(2)],
        out_hidden_size=width,
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
    return Qwen2_5_VLConfig(
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
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    config = draw_config(rng)
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = Qwen2_5_VLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(getattr(torch, str(rng.choice(["float32", "bfloat16", "float16"])))).save_pretrained(directory)
    side = 4 * config.vision_config.patch_size**2
    Qwen2VLImageProcessorPil(
        patch_size=config.vision_config.patch_size,
        size={"shortest_edge": side * int(rng.integers(1, 5)), "longest_edge": side * int(rng.integers(8, 33))},
        image_mean=[0.5, 0.48, 0.41] if rng.integers(2) else [0.48145466, 0.4578275, 0.40821073],
    ).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()


def opening(model, directory: str | os.PathLike[str], prompt: str, pictures: list) -> tuple[str, dict[str, Any]]:
    """A conversation up to the response, as one string, and the pixels that go with it. Pictures stand first, or in the places
    of `<image>` in the prompt."""
    pixels = picture_inputs(directory, pictures) if pictures else {}
    counts = [int(grid.prod()) // 4 for grid in pixels.get("image_grid_thw", [])]
    runs = ["<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" for count in counts]
    user = "".join(runs) + prompt
    if "<image>" in prompt:
        before, *texts = prompt.split("<image>")
        user = before + "".join(run + text for run, text in zip(runs, texts, strict=True))
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", pixels
