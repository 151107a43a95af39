"""The one table of weight names: which parameter of the model is which tensor of a checkpoint, read in both directions.

A checkpoint spells a tensor as a prefix, which says the part of the model and differs between namings, and a rest, which
does not. `PARTS` lists the prefixes, `TABLE` the rest. Loading resolves a stored name (`resolve`), export spells one
(`spell`), and what a parameter and its tensor look like beside each other is its `Layout`.
"""

from __future__ import annotations

import enum
import math
import re
from typing import Literal, NamedTuple

import numpy as np

Naming = Literal["hf", "original"]
Path = tuple[str, ...]  # of a parameter in the model, e.g. ("language", "layers", "attention", "q", "kernel")


class Part(NamedTuple):
    """Spellings of a prefix: those written, and others that are understood."""

    hf: str  # as the published `llava-hf` files have it: the one spelling that every transformers and vLLM loads
    original: str  # as the published `lmms-lab` files have it
    others: tuple[str, ...] = ()  # what transformers 4.52 and later call their modules, or write


PARTS = {
    "vision": Part(
        "vision_tower.vision_model.",
        "model.vision_tower.vision_tower.vision_model.",
        ("vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower."),
    ),
    "projector up": Part(
        "multi_modal_projector.linear_1.", "model.mm_projector.0.", ("model.multi_modal_projector.linear_1.",)
    ),
    "projector down": Part(
        "multi_modal_projector.linear_2.", "model.mm_projector.2.", ("model.multi_modal_projector.linear_2.",)
    ),
    "newline": Part("image_newline", "model.image_newline"),
    "language": Part("language_model.model.", "model.", ("model.language_model.",)),
    "vocabulary": Part("language_model.lm_head.", "lm_head."),
    "reward": Part("rm_head.", "rm_head."),
}


class Layout(enum.Enum):
    """A parameter beside its tensor. Layers are separate tensors and one parameter with a leading layer axis."""

    SAME = enum.auto()
    TRANSPOSED = enum.auto()  # tensor [outputs, inputs], parameter [inputs, outputs]
    PATCHES = enum.auto()  # tensor [outputs, channels, rows, columns], parameter [rows * columns * channels, outputs]

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self is Layout.PATCHES:
            side = math.isqrt(shape[0] // 3)
            return (shape[1], 3, side, side)
        return shape[::-1] if self is Layout.TRANSPOSED else shape

    def stored_index(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """The part of the tensor that holds this part of the parameter."""
        return index[::-1] if self is Layout.TRANSPOSED else index

    def to_parameter(self, tensor: np.ndarray) -> np.ndarray:
        if self is Layout.PATCHES:
            return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
        return tensor.T if self is Layout.TRANSPOSED else tensor

    def to_tensor(self, parameter: np.ndarray) -> np.ndarray:
        if self is Layout.PATCHES:
            outputs, channels, rows, columns = self.stored_shape(parameter.shape)
            return parameter.reshape(rows, columns, channels, outputs).transpose(3, 2, 0, 1)
        return parameter.T if self is Layout.TRANSPOSED else parameter


# Kinds of module: tensor -> parameter and layout. A bias that the model lacks is unexpected in a checkpoint, too.
LINEAR = {"weight": ("kernel", Layout.TRANSPOSED), "bias": ("bias", Layout.SAME)}
CONVOLUTION = {"weight": ("kernel", Layout.PATCHES), "bias": ("bias", Layout.SAME)}
EMBEDDING = {"weight": ("embedding", Layout.SAME)}
NORM = {"weight": ("scale", Layout.SAME), "bias": ("bias", Layout.SAME)}
ARRAY = {"": ("", Layout.SAME)}

# part, module in the checkpoint ("{}" is the layer's number), module in the model, kind
TABLE = (
    ("vision", "embeddings.patch_embedding", "vision.patch", CONVOLUTION),
    ("vision", "embeddings.position_embedding", "vision.positions", EMBEDDING),
    ("vision", "encoder.layers.{}.layer_norm1", "vision.layers.attention_norm", NORM),
    ("vision", "encoder.layers.{}.self_attn.q_proj", "vision.layers.attention.q", LINEAR),
    ("vision", "encoder.layers.{}.self_attn.k_proj", "vision.layers.attention.k", LINEAR),
    ("vision", "encoder.layers.{}.self_attn.v_proj", "vision.layers.attention.v", LINEAR),
    ("vision", "encoder.layers.{}.self_attn.out_proj", "vision.layers.attention.o", LINEAR),
    ("vision", "encoder.layers.{}.layer_norm2", "vision.layers.mlp_norm", NORM),
    ("vision", "encoder.layers.{}.mlp.fc1", "vision.layers.up", LINEAR),
    ("vision", "encoder.layers.{}.mlp.fc2", "vision.layers.down", LINEAR),
    ("projector up", "", "projector.up", LINEAR),
    ("projector down", "", "projector.down", LINEAR),
    ("newline", "", "newline", ARRAY),
    ("language", "embed_tokens", "language.embedding", EMBEDDING),
    ("language", "layers.{}.input_layernorm", "language.layers.attention_norm", NORM),
    ("language", "layers.{}.self_attn.q_proj", "language.layers.attention.q", LINEAR),
    ("language", "layers.{}.self_attn.k_proj", "language.layers.attention.k", LINEAR),
    ("language", "layers.{}.self_attn.v_proj", "language.layers.attention.v", LINEAR),
    ("language", "layers.{}.self_attn.o_proj", "language.layers.attention.o", LINEAR),
    ("language", "layers.{}.post_attention_layernorm", "language.layers.mlp_norm", NORM),
    ("language", "layers.{}.mlp.gate_proj", "language.layers.mlp.gate", LINEAR),
    ("language", "layers.{}.mlp.up_proj", "language.layers.mlp.up", LINEAR),
    ("language", "layers.{}.mlp.down_proj", "language.layers.mlp.down", LINEAR),
    ("language", "norm", "language.norm", NORM),
    ("vocabulary", "", "language.head", LINEAR),
    ("reward", "dense", "reward_head.dense", LINEAR),
    ("reward", "out_proj", "reward_head.out", LINEAR),
)

# Tensors of published checkpoints that LLaVA-OneVision never uses: read over, and copied from the source on export.
UNUSED = {
    "vision": re.compile(r"post_layernorm\..*|head\..*|embeddings\.position_ids"),
    "language": re.compile(r".*rotary_emb\.inv_freq"),
}

# Unused, and yet transformers' tower wants them: what to write where no source has them.
WANTED_BY_TRANSFORMERS = {("vision", "post_layernorm.weight"): 1.0, ("vision", "post_layernorm.bias"): 0.0}


class Stored(NamedTuple):
    """A stored tensor, whatever its spelling: `rest` follows the part's prefix, its layer number replaced by {}."""

    part: str
    rest: str
    layer: int | None


def _expand() -> dict[tuple[str, str], tuple[Path, Layout]]:
    entries = {}
    for part, stored_module, module, kind in TABLE:
        for leaf, (parameter, layout) in kind.items():
            rest = ".".join(filter(None, (stored_module, leaf)))
            entries[part, rest] = (tuple(filter(None, (*module.split("."), parameter))), layout)
    return entries


_ENTRIES = _expand()
_BY_PATH = {path: (part, rest, layout) for (part, rest), (path, layout) in _ENTRIES.items()}


def resolve(name: str) -> Stored | None:
    """What a stored name means, in any spelling; None for a tensor that no LLaVA-OneVision checkpoint has."""
    for part, spellings in PARTS.items():
        for prefix in (spellings.hf, spellings.original, *spellings.others):
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            number = re.search(r"(?<=layers\.)\d+(?=\.)", rest)
            template = rest if number is None else f"{rest[: number.start()]}{{}}{rest[number.end() :]}"
            if (part, template) in _ENTRIES or (part in UNUSED and UNUSED[part].fullmatch(rest)):
                return Stored(part, template, None if number is None else int(number[0]))
    return None


def spell(stored: Stored, naming: Naming) -> str:
    """The name of a tensor in a naming."""
    return getattr(PARTS[stored.part], naming) + stored.rest.replace("{}", str(stored.layer))


def parameter(stored: Stored) -> tuple[Path, Layout] | None:
    """Path and layout of the parameter that a tensor belongs to; None for an unused tensor."""
    return _ENTRIES.get((stored.part, stored.rest))


def tensors(path: Path, layers: int) -> tuple[list[Stored], Layout]:
    """The tensors of a parameter: one, or one per layer where the parameter is stacked."""
    part, rest, layout = _BY_PATH[path]
    numbers = range(layers) if "{}" in rest else (None,)
    return [Stored(part, rest, number) for number in numbers], layout


def is_stacked(path: Path) -> bool:
    return "{}" in _BY_PATH[path][1]
