"""Names of weights: a mapping, in both directions, between a model's parameters and a checkpoint's tensors. It imports no jax.

The name of a tensor is a prefix, which identifies the part of the model, and a rest. Every family has one `WeightNames`: its
parts with their prefixes in each naming, and a row for every module. Loading resolves a stored name (`resolve`), export writes
one (`spell`), and a `Layout` describes how a parameter's array is related to its tensor.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

Naming = Literal["hf", "original"]
Path = tuple[str, ...]  # path of a parameter in the model, e.g. ("language", "layers", "attention", "q", "kernel")


class Part(NamedTuple):
    """The spellings of a prefix: those that are written, others that are read, and the module's name in transformers 5."""

    hf: str  # as in published files in Hugging Face naming, which every version of transformers and vLLM loads
    original: str | None  # as in published files of the family's own code; None: there is no such naming
    others: tuple[str, ...] = ()  # names of modules in transformers 4.52 and later, which some files have
    module: str | None = None  # used for adapters; None: transformers' model has no such module


class Layout(enum.Enum):
    """How a parameter's array is related to its tensor. Layers are separate tensors, but one parameter with a leading layer
    axis."""

    SAME = enum.auto()
    TRANSPOSED = enum.auto()  # tensor [outputs, inputs], parameter [inputs, outputs]
    PATCHES = enum.auto()  # tensor [outputs, channels, rows, columns], parameter [rows * columns * channels, outputs]
    SQUEEZED = enum.auto()  # tensor [1, ...], parameter [...]
    CUBES = enum.auto()  # tensor [outputs, channels, 2 frames, rows, columns], parameter [the other axes in one, outputs]
    PLANES = enum.auto()  # tensor [outputs, channels, rows, columns], parameter [the other axes in one, outputs]

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor of a parameter with this shape (of one layer)."""
        match self:
            case Layout.PATCHES | Layout.PLANES:
                side = math.isqrt(shape[0] // 3)
                return (shape[1], 3, side, side)
            case Layout.TRANSPOSED:
                return shape[::-1]
            case Layout.SQUEEZED:
                return (1, *shape)
            case Layout.CUBES:
                side = math.isqrt(shape[0] // 6)
                return (shape[1], 3, 2, side, side)
        return shape

    def stored_index(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """The slice of the tensor that holds this slice of the parameter."""
        match self:
            case Layout.TRANSPOSED:
                return index[::-1]
            case Layout.SQUEEZED:
                return (slice(None), *index)
        return index

    def to_parameter(self, tensor: np.ndarray) -> np.ndarray:
        """The parameter's array (of one layer) from its tensor."""
        match self:
            case Layout.PATCHES:
                return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
            case Layout.TRANSPOSED:
                return tensor.T
            case Layout.SQUEEZED:
                return tensor[0]
            case Layout.CUBES | Layout.PLANES:
                return tensor.reshape(len(tensor), -1).T
        return tensor

    def to_tensor(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor from the parameter's array (of one layer); the inverse of `to_parameter`."""
        match self:
            case Layout.PATCHES:
                outputs, channels, rows, columns = self.stored_shape(parameter.shape)
                return parameter.reshape(rows, columns, channels, outputs).transpose(3, 2, 0, 1)
            case Layout.TRANSPOSED:
                return parameter.T
            case Layout.SQUEEZED:
                return parameter[None]
            case Layout.CUBES | Layout.PLANES:
                return parameter.T.reshape(self.stored_shape(parameter.shape))
        return parameter

    @property
    def is_sliced(self) -> bool:
        """Whether a slice of the parameter is a slice of the tensor, `stored_index`."""
        return self not in (Layout.PATCHES, Layout.CUBES, Layout.PLANES)


# Kinds of module: tensor -> (parameter, layout). Biases are listed even if some models lack them.
Kind = Mapping[str, tuple[str, Layout]]
LINEAR: Kind = {"weight": ("kernel", Layout.TRANSPOSED), "bias": ("bias", Layout.SAME)}
CONVOLUTION: Kind = {"weight": ("kernel", Layout.PATCHES), "bias": ("bias", Layout.SAME)}
CONVOLUTION_3D: Kind = {"weight": ("kernel", Layout.CUBES), "bias": ("bias", Layout.SAME)}
CONVOLUTION_OF_PLANES: Kind = {"weight": ("kernel", Layout.PLANES), "bias": ("bias", Layout.SAME)}
EMBEDDING: Kind = {"weight": ("embedding", Layout.SAME)}
NORM: Kind = {"weight": ("scale", Layout.SAME), "bias": ("bias", Layout.SAME)}
ARRAY: Kind = {"": ("", Layout.SAME)}
ARRAY_OF_ONE: Kind = {"": ("", Layout.SQUEEZED)}


class Row(NamedTuple):
    """A module: its part, its names in a checkpoint ("{}" is the layer's number) and in the model, and its kind.

    `original` is its name in the original naming, if that differs by more than the prefix. In either naming "name[i/n]" is the
    i-th of n equal pieces, along the first axis, of the tensors of the module `name`.
    """

    part: str
    stored: str
    module: str
    kind: Kind
    original: str | None = None


# The language model and the heads, the same in every family.
DECODER = (
    Row("language", "embed_tokens", "language.embedding", EMBEDDING),
    Row("language", "layers.{}.input_layernorm", "language.layers.attention_norm", NORM),
    Row("language", "layers.{}.self_attn.q_proj", "language.layers.attention.q", LINEAR),
    Row("language", "layers.{}.self_attn.k_proj", "language.layers.attention.k", LINEAR),
    Row("language", "layers.{}.self_attn.v_proj", "language.layers.attention.v", LINEAR),
    Row("language", "layers.{}.self_attn.o_proj", "language.layers.attention.o", LINEAR),
    Row("language", "layers.{}.post_attention_layernorm", "language.layers.mlp_norm", NORM),
    Row("language", "layers.{}.mlp.gate_proj", "language.layers.mlp.gate", LINEAR),
    Row("language", "layers.{}.mlp.up_proj", "language.layers.mlp.up", LINEAR),
    Row("language", "layers.{}.mlp.down_proj", "language.layers.mlp.down", LINEAR),
    Row("language", "norm", "language.norm", NORM),
    Row("vocabulary", "", "language.head", LINEAR),
    Row("reward", "dense", "reward_head.dense", LINEAR),
    Row("reward", "out_proj", "reward_head.out", LINEAR),
)
QK_NORMS = (  # of Qwen3
    Row("language", "layers.{}.self_attn.q_norm", "language.layers.attention.q_norm", NORM),
    Row("language", "layers.{}.self_attn.k_norm", "language.layers.attention.k_norm", NORM),
)
REWARD = Part("rm_head.", "rm_head.")

_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)|(?<=layer\.)\d+(?=\.)|(?<=blocks\.)\d+(?=\.)|(?<=_list\.)\d+(?=\.)")
_PIECE = re.compile(r"\[(\d+)/(\d+)\]$")


class Stored(NamedTuple):
    """A stored tensor, independent of its spelling: `rest` is the name after the part's `hf` prefix, with {} for the layer
    number."""

    part: str
    rest: str
    layer: int | None


EMBEDDED = Stored("language", "embed_tokens.weight", None)
PROJECTED = Stored("vocabulary", "weight", None)


class WeightNames:
    """The names of one family's weights.

    Args:
        parts: name of a part -> its prefixes.
        rows: the modules.
        unused: part -> pattern of the rest of names of tensors that published checkpoints contain but the model does not use.
            They are ignored on loading, and copied from the source on export.
        wanted: (part, rest) of unused tensors that transformers expects -> the value to write if the source lacks them.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        rows: Sequence[Row],
        unused: Mapping[str, re.Pattern[str]],
        wanted: Mapping[tuple[str, str], float],
    ):
        self.parts, self.unused, self.wanted = parts, unused, wanted
        self._entries: dict[tuple[str, str], tuple[Path, Layout]] = {}
        self._original: dict[tuple[str, str], str] = {}  # rest in Hugging Face naming -> in the original one
        for row in rows:
            for leaf, (parameter, layout) in row.kind.items():
                rest = _joined(row.stored, leaf)
                self._entries[row.part, rest] = (tuple(filter(None, (*row.module.split("."), parameter))), layout)
                self._original[row.part, rest] = _joined(row.stored if row.original is None else row.original, leaf)
        self._hf = {(part, spelt): rest for (part, rest), spelt in self._original.items()}
        self._by_path = {path: (part, rest, layout) for (part, rest), (path, layout) in self._entries.items()}
        self._pieces = {
            (part, is_original, whole): count
            for is_original, spelt in ((False, self._entries), (True, self._hf))
            for part, (whole, _, count) in ((part, whole_name(rest)) for part, rest in spelt)
        }

    def resolve(self, name: str) -> Stored | None:
        """The tensor of a stored name, in any spelling; None if it does not belong to the family."""
        for part, prefix, is_original in self._prefixes():
            if not name.startswith(prefix):
                continue
            rest, layer = _template(name[len(prefix) :])
            if is_original:
                rest = self._hf.get((part, rest), rest)
            if (part, rest) in self._entries or (part in self.unused and self.unused[part].fullmatch(name[len(prefix) :])):
                return Stored(part, rest, layer)
        return None

    def pieces(self, name: str) -> int:
        """The number of parameters whose tensors are concatenated along the first axis in the tensor of this name."""
        found = (
            self._pieces.get((part, is_original, _template(name[len(prefix) :])[0]))
            for part, prefix, is_original in self._prefixes()
            if name.startswith(prefix)
        )
        return next(filter(None, found), 1)

    @property
    def namings(self) -> tuple[Naming, ...]:
        """The namings in which the family's checkpoints are read and written."""
        return ("hf",) if self.parts["vision"].original is None else ("hf", "original")

    def spell(self, stored: Stored, naming: Naming) -> str:
        """The name of a tensor in a naming; a `piece_name` if it is a piece of a tensor there."""
        rest = stored.rest if naming == "hf" else self._original.get((stored.part, stored.rest), stored.rest)
        return getattr(self.parts[stored.part], naming) + rest.replace("{}", str(stored.layer))

    def is_original(self, name: str) -> bool:
        """Whether a stored name has the vision tower's prefix of the original naming."""
        prefix = self.parts["vision"].original
        return prefix is not None and name.startswith(prefix)

    def parameter(self, stored: Stored) -> tuple[Path, Layout] | None:
        """(path, layout) of a tensor's parameter; None for an unused tensor."""
        return self._entries.get((stored.part, stored.rest))

    def tensors(self, path: Path, layers: int) -> tuple[list[Stored], Layout]:
        """(the tensors of a parameter: one, or one per layer if it is stacked; their layout)."""
        part, rest, layout = self._by_path[path]
        numbers = range(layers) if "{}" in rest else (None,)
        return [Stored(part, rest, number) for number in numbers], layout

    def is_stacked(self, path: Path) -> bool:
        return "{}" in self._by_path[path][1]

    def _prefixes(self):
        """Yield (part, prefix, whether it is of the original naming), in the order in which they are tried."""
        for part, spellings in self.parts.items():
            yield part, spellings.hf, False
            if spellings.original is not None:
                yield part, spellings.original, True
            for prefix in spellings.others:
                yield part, prefix, False


def piece_name(name: str, number: int, count: int) -> str:
    """The name that this project gives to the `number`-th of `count` equal pieces of a tensor."""
    return f"{name}[{number}/{count}]"


def whole_name(name: str) -> tuple[str, int, int]:
    """(name of the tensor, number of the piece, number of pieces) of a name that may be a `piece_name`."""
    match = _PIECE.search(name)
    return (name, 0, 1) if match is None else (name[: match.start()], int(match[1]), int(match[2]))


def _joined(module: str, leaf: str) -> str:
    """The name of a module's tensor: "qkv[0/3]" and "weight" give "qkv.weight[0/3]"."""
    whole, number, count = whole_name(module)
    name = ".".join(filter(None, (whole, leaf)))
    return name if count == 1 else piece_name(name, number, count)


def _template(rest: str) -> tuple[str, int | None]:
    """(the rest of a name with {} for the layer's number, that number or None)."""
    number = _LAYER.search(rest)
    return (rest, None) if number is None else (f"{rest[: number.start()]}{{}}{rest[number.end() :]}", int(number[0]))
