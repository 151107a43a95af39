"""InternVL as `tests.families` has it: tiny checkpoints with random weights, and the inputs of transformers' model.

The tensor list below is written out from the released checkpoints, and the original names follow transformers' converter
(`convert_internvl_weights_to_hf.py`); neither is taken from the table that they test.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.families.pixels import normalised_tiles

Naming = Literal["hf", "modules", "original"]
NAMINGS = ("hf", "modules", "original")
PUBLISHED = "hf"  # in Hugging Face naming, and what an export is written in

SIDE = 28  # of a tile: 4 x 4 patches of 7 pixels, 2 x 2 visual tokens
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
SPECIAL_TOKENS = (*CHATML, *IMAGE_TOKENS, "<video>")
IMAGE_TOKEN = 261
# As transformers' converter writes it, with the placeholder that its processor replaces today.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif content['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}"
)


TOLERANCE = 2e-5  # norms of queries and keys in the tower add roundings
SHAPES = {
    "untied, 6 heads over 2": {},
    "tied, as the 6B tower": {
        "text": {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 3, "rope_theta": 10_000.0},
        "vision": {"num_attention_heads": 9, "attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm"},
    },
    "5 heads over 1, an earlier layer's features, other activations": {
        "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "rms_norm_eps": 1e-5},
        "vision": {
            "num_hidden_layers": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-5,
            "attention_bias": False,
            "image_size": [48, 48],
            "patch_size": [8, 8],
        },
        "vision_feature_layer": -2,
        "projector_hidden_act": "gelu_pytorch_tanh",
    },
}

# (height, width) of the pictures of a prompt
PICTURES = {
    "text only": [],
    "one tile": [(28, 28)],
    "smaller than a tile": [(11, 7)],
    "wide": [(30, 200)],
    "tall": [(333, 41)],
    "a strip": [(14, 2000)],
    "largest": [(300, 400)],
    "two of unlike aspect": [(50, 20), (25, 100)],
    "three, one square": [(64, 64), (10, 300), (90, 45)],
}
FRAMES = (1, 8, 32)
ROW = (768, 40, 320)  # slots, tiles and visual tokens: room for the largest of these

# At the published geometry: tiles of 448 pixels, patches of 14, up to 12 tiles. Few, narrow layers.
PUBLISHED_GEOMETRY = {
    "vision": {
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
    },
    "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "max_position_embeddings": 32768},
}
# (height, width) of a lone picture -> its visual tokens: 256 a tile.
TOKENS = {
    (480, 640): 256 * (4 * 3 + 1),
    (448, 448): 256,
    (32, 32): 256,
    (500, 336): 256 * (2 * 3 + 1),
    (800, 800): 256 * (2 * 2 + 1),
    (600, 1000): 256 * (3 * 2 + 1),
    (1080, 1920): 256 * (4 * 2 + 1),
    (500, 3000): 256 * (6 * 1 + 1),
    (3000, 4000): 256 * (4 * 3 + 1),
    (4000, 3000): 256 * (3 * 4 + 1),
}
VIDEO_TOKENS = {8: 8 * 256, 32: 32 * 256}  # frames -> visual tokens
QUICK_PICTURES = ("14 high, 2000 wide", "2000 high, 14 wide", "two", "3000 high, 4000 wide")  # the extremes
QUICK_FRAMES = (8,)
# The original code computes pixels without an image processor's file.
TOWER_LINEARS, TOWER_MODULES = 6, 6
PROJECTOR_LINEARS = 2
UNREAD_FILES = {"hf": "video_preprocessor_config.json", "original": "preprocessor_config.json"}


def config(*, text: dict | None = None, vision: dict | None = None, **top: Any) -> dict[str, Any]:
    """A Hugging Face `config.json`: 3 vision layers with 3 heads, 2 decoder layers with 6 heads over 2 key-value heads."""
    tower = {
        "model_type": "internvl_vision",
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "attention_bias": True,
        "use_qk_norm": False,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "image_size": [SIDE, SIDE],
        "patch_size": [7, 7],
    }
    decoder = {
        "model_type": "qwen2",
        "vocab_size": 266,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    tower |= vision or {}
    decoder |= text or {}
    raw = {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "dtype": "float32",
        "image_token_id": IMAGE_TOKEN,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": decoder["tie_word_embeddings"],
        "vision_config": tower,
        "text_config": decoder,
    }
    raw["image_seq_length"] = tokens_per_tile(raw)
    return copy.deepcopy(raw | top)


def tokens_per_tile(raw: dict[str, Any]) -> int:
    side = raw["vision_config"]["image_size"][0] // raw["vision_config"]["patch_size"][0]
    return int(side * raw["downsample_ratio"]) ** 2


def original_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` that the original code would have for the same model."""
    tower, text = raw["vision_config"], raw["text_config"]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "norm_type")
    vision = {key: tower[key] for key in (*kept, "layer_norm_eps")} | {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "image_size": tower["image_size"][0],
        "patch_size": tower["patch_size"][0],
        "qkv_bias": tower["attention_bias"],
        "qk_normalization": tower["use_qk_norm"],
        "num_channels": 3,
    }
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "downsample_ratio": raw["downsample_ratio"],
        "dynamic_image_size": True,
        "force_image_size": tower["image_size"][0],
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": raw["vision_feature_layer"],
        "template": "internvl2_5",
        "tie_word_embeddings": raw["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
        "llm_config": {**text, "architectures": ["Qwen2ForCausalLM"]},
        "vision_config": vision,
    }


def shapes(raw: dict[str, Any], reward_head: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint in `-hf` naming."""
    text, tower = raw["text_config"], raw["vision_config"]
    h, d = text["hidden_size"], tower["hidden_size"]
    head_dim = h // text["num_attention_heads"]
    q, kv = text["num_attention_heads"] * head_dim, text["num_key_value_heads"] * head_dim
    patch, side = tower["patch_size"][0], tower["image_size"][0] // tower["patch_size"][0]
    merged = d * round(1 / raw["downsample_ratio"]) ** 2
    found: dict[str, tuple[int, ...]] = {
        "vision_tower.embeddings.cls_token": (1, 1, d),
        "vision_tower.embeddings.position_embeddings": (1, 1 + side * side, d),
        "vision_tower.embeddings.patch_embeddings.projection.weight": (d, 3, patch, patch),
        "vision_tower.embeddings.patch_embeddings.projection.bias": (d,),
        "multi_modal_projector.layer_norm.weight": (merged,),
        "multi_modal_projector.layer_norm.bias": (merged,),
        "multi_modal_projector.linear_1.weight": (h, merged),
        "multi_modal_projector.linear_1.bias": (h,),
        "multi_modal_projector.linear_2.weight": (h, h),
        "multi_modal_projector.linear_2.bias": (h,),
        "language_model.model.embed_tokens.weight": (text["vocab_size"], h),
        "language_model.model.norm.weight": (h,),
    }
    for i in range(tower["num_hidden_layers"]):
        layer, hidden = f"vision_tower.encoder.layer.{i}.", tower["intermediate_size"]
        for norm in ("layernorm_before", "layernorm_after"):
            found[f"{layer}{norm}.weight"] = (d,)
            if tower["norm_type"] == "layer_norm":
                found[f"{layer}{norm}.bias"] = (d,)
        for name in ("q_proj", "k_proj", "v_proj"):
            found[f"{layer}attention.{name}.weight"] = (d, d)
            if tower["attention_bias"]:
                found[f"{layer}attention.{name}.bias"] = (d,)
        if tower["use_qk_norm"]:
            found |= {f"{layer}attention.q_norm.weight": (d,), f"{layer}attention.k_norm.weight": (d,)}
        found |= {f"{layer}attention.projection_layer.weight": (d, d), f"{layer}attention.projection_layer.bias": (d,)}
        found |= {f"{layer}lambda_1": (d,), f"{layer}lambda_2": (d,)}
        found |= {f"{layer}mlp.fc1.weight": (hidden, d), f"{layer}mlp.fc1.bias": (hidden,)}
        found |= {f"{layer}mlp.fc2.weight": (d, hidden), f"{layer}mlp.fc2.bias": (d,)}
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        found |= {f"{layer}input_layernorm.weight": (h,), f"{layer}post_attention_layernorm.weight": (h,)}
        for name, size in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            found |= {f"{layer}self_attn.{name}.weight": (size, h), f"{layer}self_attn.{name}.bias": (size,)}
        found[f"{layer}self_attn.o_proj.weight"] = (h, q)
        for name in ("gate_proj", "up_proj"):
            found[f"{layer}mlp.{name}.weight"] = (text["intermediate_size"], h)
        found[f"{layer}mlp.down_proj.weight"] = (h, text["intermediate_size"])
    if not raw["tie_word_embeddings"]:
        found["language_model.lm_head.weight"] = (text["vocab_size"], h)
    if reward_head:
        found |= {"rm_head.dense.weight": (h, h), "rm_head.dense.bias": (h,)}
        found |= {"rm_head.out_proj.weight": (1, h), "rm_head.out_proj.bias": (1,)}
    return found


def tensors(
    raw: dict[str, Any], *, naming: Naming = "hf", seed: int = 0, dtype: Any = np.float32, reward_head: bool = False
) -> dict[str, np.ndarray]:
    """Random weights, the same in every naming, of a scale that keeps activations near one.

    Namings: `hf` (the published `-hf` files, and what transformers 5 writes), `modules` (module names of transformers 4.52 and
    later) and `original` (the published `OpenGVLab` files).
    """
    rng = np.random.default_rng(seed)
    found = {name: _values(rng, name, shape).astype(dtype) for name, shape in shapes(raw, reward_head).items()}
    if naming == "modules":
        return {_module_name(name): value for name, value in found.items()}
    return found if naming == "hf" else to_original(found)


def _module_name(name: str) -> str:
    if name.startswith("rm_head."):
        return name
    if "lm_head" in name:
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


# Pattern in Hugging Face's name and what the original name has there; transformers' converter reads them the other way.
ORIGINAL_VISION = (
    (r"^vision_tower\.", "vision_model."),
    (r"encoder\.layer\.", "encoder.layers."),
    (r"embeddings\.cls_token$", "embeddings.class_embedding"),
    (r"embeddings\.position_embeddings$", "embeddings.position_embedding"),
    (r"patch_embeddings\.projection", "patch_embedding"),
    (r"lambda_(\d)$", r"ls\1"),
    (r"attention\.projection_layer", "attn.proj"),
    (r"\.attention\.", ".attn."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
)
ORIGINAL_PROJECTOR = {"layer_norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}


def to_original(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors in `-hf` naming to those of the original code, where queries, keys and values of the tower are one tensor."""
    renamed: dict[str, np.ndarray] = {}
    for name, value in found.items():
        if name.startswith("vision_tower."):
            for pattern, replacement in ORIGINAL_VISION:
                name = re.sub(pattern, replacement, name)
        elif name.startswith("multi_modal_projector."):
            _, module, kind = name.split(".")
            name = f"{ORIGINAL_PROJECTOR[module]}.{kind}"
        renamed[name] = value
    for query in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(query.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[query.replace("q_proj", "qkv")] = np.concatenate(parts)
    return renamed


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
    stated = {**original_config(raw), "torch_dtype": dtype_name} if naming == "original" else {**raw, "dtype": dtype_name}
    (directory / "config.json").write_text(json.dumps(stated))
    stored = tensors(raw, naming=naming, seed=seed, dtype=dtype, reward_head=reward_head)
    save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
    if with_tokenizer:
        tokenizer().save_pretrained(directory)
    if naming == "original":
        (directory / "preprocessor_config.json").write_text(json.dumps(original_image_processor(raw)))
    else:
        (directory / "preprocessor_config.json").write_text(json.dumps(image_processor(raw)))
        joint = {"processor_class": "InternVLProcessor", "image_seq_length": tokens_per_tile(raw)}
        (directory / "processor_config.json").write_text(json.dumps(joint))
    return directory


def image_processor(raw: dict[str, Any]) -> dict[str, Any]:
    """`preprocessor_config.json` with statistics that differ between channels, so that an exchange shows.

    `crop_to_patches` is false as in published files: the processor's call, not this file, turns tiling on.
    """
    side = raw["vision_config"]["image_size"][0]
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 12,
        "min_patches": 1,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }


def original_image_processor(raw: dict[str, Any]) -> dict[str, Any]:
    """The published one describes a plain squeeze: the original code cuts tiles itself and does not ask it."""
    side = raw["vision_config"]["image_size"][0]
    return {
        "crop_size": side,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": side,
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, then ChatML's three and InternVL's four, with the attributes that its processor asks for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.normal(size=shape)
    if "norm" in name:
        return 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
    if name.endswith(("lambda_1", "lambda_2")):  # far from the 0.1 of the class, of either sign
        return 0.4 * noise
    if "embed_tokens" in name or name.endswith(("cls_token", "position_embeddings")):
        return 0.3 * noise
    if len(shape) == 1:
        return 0.2 * noise
    return noise * np.prod(shape[1:]) ** -0.5


def media_ids(tokenizer) -> dict[str, int]:
    """Arguments of `config` for the media tokens of a tokenizer."""
    return {"image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")}


def picture_inputs(directory: str | os.PathLike[str], pictures: list) -> dict[str, Any]:
    """What transformers' model takes beside ids for a prompt with these pictures. Needs torch."""
    from transformers import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil.from_pretrained(directory)
    # As `InternVLProcessor` calls it.
    return {"pixel_values": processor(images=pictures, crop_to_patches=True, return_tensors="pt")["pixel_values"]}


def id_inputs(ids: np.ndarray) -> dict[str, Any]:
    """What transformers' model takes beside pixels and ids, [1, N]."""
    return {}


def frame_inputs(config: Any, frames: list, ids: np.ndarray, positions: np.ndarray | None) -> dict[str, Any]:
    """transformers' inputs for a prompt of ids, [N], about a video: those of as many images."""
    return {"input_ids": ids, "pixel_values": normalised_tiles(config, frames)}


def draw_config(rng: np.random.Generator):
    """transformers' config of a random shape."""
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

    def number(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    patch = number(4, 14)
    side = 2 * patch * number(1, 3)
    heads, kv_heads, width = number(1, 3), number(1, 3), 2 * number(3, 9)
    vision_heads, layers = number(1, 7), number(1, 4)
    tied = bool(rng.integers(2))
    vision = InternVLVisionConfig(
        hidden_size=vision_heads * 4 * number(1, 3),
        intermediate_size=number(20, 70),
        num_hidden_layers=layers,
        num_attention_heads=vision_heads,
        attention_bias=bool(rng.integers(2)),
        use_qk_norm=bool(rng.integers(2)),
        norm_type=str(rng.choice(["layer_norm", "rms_norm"])),
        image_size=[side, side],
        patch_size=[patch, patch],
        hidden_act=str(rng.choice(["gelu_pytorch_tanh", "gelu"])),
        initializer_range=0.1,
    )
    text = Qwen2Config(
        vocab_size=263 + number(0, 9),
        hidden_size=heads * kv_heads * width,
        intermediate_size=number(30, 90),
        num_hidden_layers=number(1, 4),
        num_attention_heads=heads * kv_heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=float(rng.choice([1e-6, 1e-5])),
        rope_parameters={
            "rope_theta": float(rng.choice([1e4, 1e5, 1e6])),
            **({"rope_type": "dynamic", "factor": 2.0} if rng.integers(2) else {"rope_type": "default"}),
        },
        tie_word_embeddings=tied,
        initializer_range=0.15,
        max_position_embeddings=32768,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=(side // patch // 2) ** 2,
        vision_feature_layer=-number(1, layers),
        tie_word_embeddings=tied,
    )


def draw_model(rng: np.random.Generator, directory):
    """A checkpoint as transformers writes it, in a random dtype; returns transformers' model of it in float32."""
    import torch
    from transformers import GotOcr2ImageProcessorPil, InternVLForConditionalGeneration

    config = draw_config(rng)
    torch.manual_seed(int(rng.integers(1 << 30)))
    model = InternVLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "cls_token", "position_embeddings")):
            torch.nn.init.normal_(parameter, std=0.1)
        if "lambda_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.to(getattr(torch, str(rng.choice(["float32", "bfloat16", "float16"])))).save_pretrained(directory)
    side = config.vision_config.image_size[0]
    GotOcr2ImageProcessorPil(
        size={"height": side, "width": side},
        max_patches=int(rng.integers(1, 13)),
        image_mean=[0.5, 0.48, 0.41] if rng.integers(2) else [0.485, 0.456, 0.406],
    ).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return InternVLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()


def opening(model, directory: str | os.PathLike[str], prompt: str, pictures: list) -> tuple[str, dict[str, Any]]:
    """A conversation up to the response, as one string, and the pixels that go with it. Pictures stand first, or in the places
    of `<image>` in the prompt."""
    from transformers import GotOcr2ImageProcessorPil

    pixels, tiles = {}, []
    if pictures:
        processor = GotOcr2ImageProcessorPil.from_pretrained(directory)
        pixels = dict(processor(images=pictures, crop_to_patches=True, return_tensors="pt"))
        tiles = [int(count) for count in pixels.pop("num_patches")]
    lines = ["<img>" + "<IMG_CONTEXT>" * (count * model.config.image_seq_length) + "</img>\n" for count in tiles]
    user = "".join(lines) + prompt
    if "<image>" in prompt:
        before, *texts = prompt.split("<image>")
        user = before + "".join(line + text for line, text in zip(lines, texts, strict=True))
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", pixels
