"""LLaVA-OneVision as `tests.families` has it; its tiny checkpoints are those of `tests.tiny`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tests.families.pixels import normalised_tiles
from tests.tiny import IMAGE_TOKEN, VIDEO_TOKEN, checkpoint, config, tensors, tokenizer

__all__ = ["IMAGE_TOKEN", "checkpoint", "config", "tensors", "tokenizer"]

NAMINGS = ("hf", "legacy", "saved", "original")
PUBLISHED = "legacy"  # in Hugging Face naming, and what an export is written in

TOLERANCE = 1e-5
SHAPES = {
    "tied, 6 heads over 2": {},
    "untied, odd heads": {
        "text": {"tie_word_embeddings": False, "num_attention_heads": 3, "num_key_value_heads": 3, "rope_theta": 10_000.0},
        "vision": {"num_attention_heads": 9, "hidden_act": "gelu"},
        "vision_feature_layer": 3,
    },
    "5 heads over 1, last vision layer unused, no projector bias": {
        "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
        "vision": {"patch_size": 10, "num_hidden_layers": 2},
        "vision_feature_layer": -2,
        "vision_aspect_ratio": "anyres_max_4",
        "projector_hidden_act": "gelu_pytorch_tanh",
        "multimodal_projector_bias": False,
    },
}

# (height, width) of the pictures of a prompt
PICTURES = {
    "text only": [],
    "one tile": [(30, 30)],
    "smaller than a tile": [(11, 7)],
    "wide": [(30, 200)],
    "tall": [(333, 41)],
    "scaled down": [(173, 161)],
    "largest": [(180, 180)],
    "two": [(50, 20), (25, 100)],
    "three, one square": [(64, 64), (10, 300), (90, 45)],
}
FRAMES = (1, 8, 32)
ROW = (320, 37, 280)  # slots, tiles and visual tokens: room for the largest of these

# At the published geometry: tiles of 384 pixels, patches of 14, 36 pinpoints, anyres_max_9. Few, narrow layers.
PUBLISHED_GEOMETRY = {
    "vision": {
        "image_size": 384,
        "patch_size": 14,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
    },
    "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
}
# (height, width) of a lone picture -> its visual tokens, worked out by hand from the rules of the original code.
TOKENS = {
    (480, 640): 2929,
    (384, 384): 1485,
    (100, 200): 1093,
    (800, 800): 7371,
    (600, 1000): 4665,
    (1080, 1920): 7269,
    (1500, 2000): 7309,
    (500, 3000): 5130,
    (3000, 4000): 7309,
}
VIDEO_TOKENS = {8: 8 * 196 + 1, 32: 32 * 196 + 1}  # frames -> visual tokens
QUICK_PICTURES = None  # all of them
QUICK_FRAMES = (8, 32)
TOWER_LINEARS, TOWER_MODULES = 6, 6
PROJECTOR_LINEARS = 2
UNREAD_FILES = {"legacy": "video_preprocessor_config.json"}


def media_ids(tokenizer) -> dict[str, int]:
    """Arguments of `config` for the media tokens of a tokenizer."""
    return {f"{kind}_token_index": tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}


def picture_inputs(directory: str | os.PathLike[str], pictures: list) -> dict[str, Any]:
    """What transformers' model takes beside ids for a prompt with these pictures. Needs torch."""
    from transformers import LlavaOnevisionImageProcessorPil

    processor = LlavaOnevisionImageProcessorPil.from_pretrained(directory)
    return dict(processor(images=[pictures], return_tensors="pt"))


def id_inputs(ids: np.ndarray) -> dict[str, Any]:
    """What transformers' model takes beside pixels and ids, [1, N]."""
    return {}


def frame_inputs(config: Any, frames: list, ids: np.ndarray, positions: np.ndarray | None) -> dict[str, Any]:
    """transformers' inputs for a prompt of ids, [N], about a video, which has a token of its own."""
    theirs = np.where(ids == config.image_token, VIDEO_TOKEN, ids)
    return {"input_ids": theirs, "pixel_values_videos": normalised_tiles(config, frames)[None]}


def draw_config(rng: np.random.Generator):
    """transformers' config of a random shape."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    patch = number(5, 14)
    side = patch * number(2, 6) + number(0, patch - 1)
    heads, kv_heads, width = number(1, 3), number(1, 3), 2 * number(3, 9)
    vision_heads, reach = number(1, 7), number(2, 6)
    tied = bool(rng.integers(2))
    vision = SiglipVisionConfig(
        hidden_size=vision_heads * 4 * number(1, 3),
        intermediate_size=number(20, 70),
        num_hidden_layers=number(1, 3),
        num_attention_heads=vision_heads,
        image_size=side,
        patch_size=patch,
        hidden_act=str(rng.choice(["gelu_pytorch_tanh", "gelu"])),
        initializer_range=0.1,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=264 + number(0, 9),
        hidden_size=heads * kv_heads * width,
        intermediate_size=number(30, 90),
        num_hidden_layers=number(1, 4),
        num_attention_heads=heads * kv_heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=float(rng.choice([1e-6, 1e-5])),
        rope_parameters={"rope_type": "default", "rope_theta": float(rng.choice([1e4, 1e5, 1e6]))},
        tie_word_embeddings=tied,
        initializer_range=0.15,
        max_position_embeddings=32768,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=[[side * i, side * j] for i in range(1, reach + 1) for j in range(1, reach + 1)],
        vision_aspect_ratio=f"anyres_max_{number(2, 9)}",
        projector_hidden_act="gelu",
        multimodal_projector_bias=bool(rng.integers(2)),
        tie_word_embeddings=tied,
    )


def draw_model(rng: np.random.Generator, directory):
    """A checkpoint as transformers writes it, in a random dtype; returns transformers' model of it in float32."""
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil

    config = draw_config(rng)
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = LlavaOnevisionForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.image_newline, std=0.3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(getattr(torch, str(rng.choice(["float32", "bfloat16", "float16"])))).save_pretrained(directory)
    side = config.vision_config.image_size
    LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=config.image_grid_pinpoints,
        size={"height": side, "width": side},
        image_mean=[0.5, 0.48, 0.41] if rng.integers(2) else [0.5, 0.5, 0.5],
    ).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return LlavaOnevisionForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()


def opening(model, directory: str | os.PathLike[str], prompt: str, pictures: list) -> tuple[str, dict[str, Any]]:
    """A conversation up to the response, as one string, and the pixels that go with it. Pictures stand first, or in the places
    of `<image>` in the prompt."""
    import torch

    pixels, counts = {}, []
    if pictures:
        pixels = picture_inputs(directory, pictures)
        with torch.no_grad():
            features = model.model.get_image_features(**pixels)
        counts = [len(image) for image in getattr(features, "pooler_output", features)]
    user = " ".join("<image>" * count for count in counts) + "\n" * bool(counts) + prompt
    if "<image>" in prompt:
        before, *texts = prompt.split("<image>")
        user = before + "".join("<image>" * count + text for count, text in zip(counts, texts, strict=True))
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    return f"{system}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", pixels
