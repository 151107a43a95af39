"""Finds arrays that a compiled step writes to memory and the design does not: attention scores, logits of more targets than a
chunk has, the features of every tap, float32 copies of weights, and whatever else is large and unforeseen.

Arrays are recognised by their sizes. Small ones are not judged; a large one must be one of those that the design names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.planning.hlo import BITS, Array, Instruction, Module
from mmrlhf_jax.sharding.rules import axes_in, fit, spec
from mmrlhf_jax.training.state import TrainState

# Instructions that write no array of their own.
NO_ARRAY = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier"}
# The compiler pads matrices to whole tiles, and a class token is of no patch: sizes are compared to a hundredth.
TOLERANCE = 0.01
STACKS = ("layers", "deepstack")  # attributes of a model whose parameters have a leading axis of layers
WORKSPACE = "s8"  # the dtype of a library's workspace, which is a result of its call
FLOAT32 = 4


class Size(NamedTuple):
    """So many elements of at most so many bytes each."""

    elements: int
    itemsize: int

    def holds(self, array: Array) -> bool:
        fits = abs(array.elements - self.elements) <= self.elements * TOLERANCE
        return fits and BITS.get(array.dtype, 0) <= 8 * self.itemsize


@dataclasses.dataclass(frozen=True)
class Design:
    """The arrays that a step may write on one device.

    Attributes:
        small: arrays of no more elements are not judged: queries, keys and values of one layer, with their adapters' inputs.
        named: the larger ones by name.
        weights: elements of the matrices that are gathered, as they are used.
        taps: elements of the features of every tap of every visual slot, which are to be summed before they are written; 0 if
            there is one tap.
        heads: rows times heads of an attention, for recognising its scores.
        vocabulary: columns of the logits.
    """

    small: int
    named: dict[str, Size]
    weights: frozenset[int]
    taps: int
    heads: int
    vocabulary: frozenset[int]

    def has(self, array: Array) -> bool:
        """Whether an array is small or, by its size, one of those that are named."""
        if array.elements <= self.small:
            return True
        return array.elements != self.taps and any(size.holds(array) for size in self.named.values())


def design_of(model: ModelConfig, experiment: config.Experiment, state: TrainState, mesh: Mesh) -> Design:
    """The design's arrays for one accumulation piece of a train step with this abstract state. The experiment must set all row
    sizes and the accumulation."""
    batch, text, vision, tower = experiment.batch, model.text, model.vision, model.tower_work
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = -(-batch.rows // batch.accumulation // shards)
    context, tensor = mesh.shape["context"], mesh.shape["tensor"]
    slots = rows * -(-batch.slots // context)
    computed = tower.computed_tiles(batch.tiles, context)
    tiles = -(-rows * computed // context)
    patches, features = tiles * tower.slots, rows * computed * model.geometry.features
    widths = (1 + text.deepstack) * text.hidden_size  # of a feature
    pixels, taps = tiles * prod(model.geometry.unit_shape), model.geometry.taps
    vocabulary = _share(text.vocab_size, "act_vocab", mesh)
    chunk = rows * min(batch.logprob_chunk, -(-batch.targets // context)) * vocabulary
    heads, kv_heads = _share(text.heads, "heads", mesh), _share(text.kv_heads, "heads", mesh)
    attending = text.heads // text.kv_heads * _share(text.kv_heads, "act_heads", mesh)  # of whole rows
    adapters = 3 * experiment.lora.rank if experiment.lora else 0
    attended = (heads + 2 * kv_heads) * text.head_dim + adapters
    wide = {"residuals": text.hidden_size, "MLP": -(-text.intermediate_size // tensor), "queries": heads * text.head_dim}
    seen = {"tower": vision.hidden_size, "tower's MLP": -(-vision.intermediate_size // tensor)}
    seen["tower's queries"] = _share(tower.heads, "heads", mesh) * tower.width // tower.heads
    # Of every layer, until the backward pass comes to it.
    kept = ("residuals", "tower") if experiment.model.remat == "full" else (*wide, *seen)
    named = {
        **{name: Size(slots * width, FLOAT32) for name, width in wide.items()},
        "both products of the MLP": Size(2 * slots * wide["MLP"], FLOAT32),
        **{f"{name} of all layers": Size(text.layers * slots * wide[name], FLOAT32) for name in wide if name in kept},
        **{name: Size(patches * width, FLOAT32) for name, width in seen.items()},
        **{f"{name} of all layers": Size(tower.layers * patches * seen[name], FLOAT32) for name in seen if name in kept},
        "queries of whole rows": Size(rows * batch.slots * attending * text.head_dim, FLOAT32),
        "visual features": Size(features * widths, FLOAT32),
        "visual features of the device's tiles": Size(tiles * model.geometry.features * widths, FLOAT32),
        "patches in the language model's width": Size(patches * text.hidden_size, FLOAT32),
        "visual slots": Size(rows * batch.visual * widths, FLOAT32),
        "features of the first layers": Size(text.deepstack * slots * text.hidden_size, FLOAT32),
        "features of the first layers of the device's tiles": Size(
            text.deepstack * tiles * model.geometry.features * text.hidden_size, FLOAT32
        ),
        "pixels": Size(pixels, FLOAT32),
        "pixels of patches": Size(tiles * tower.embedding_products // tower.width, FLOAT32),
        "pixels of all pieces": Size(batch.accumulation * pixels, 1),
        "states of targets": Size(rows * batch.targets * text.hidden_size, FLOAT32),
        "logits of a chunk": Size(chunk, FLOAT32),
        "gradient of a chunk's logits, in two pieces": Size(2 * chunk, 2),
    }
    stored, gathered = _parameters(state)
    named |= {f"parameter of {elements} elements": Size(elements, FLOAT32) for elements in stored | gathered}
    return Design(
        small=int(slots * max(text.hidden_size, attended) * (1 + TOLERANCE)),
        named=named,
        weights=frozenset(gathered),
        taps=rows * batch.visual * taps * text.hidden_size if taps > 1 else 0,
        heads=rows * attending,
        vocabulary=frozenset({vocabulary, text.vocab_size}),
    )


def _share(size: int, axis: str, mesh: Mesh) -> int:
    """What a device has of an activation's dimension with this logical axis; all of it where the mesh does not divide it."""
    return size // prod(mesh.shape[name] for name in axes_in(fit(spec(axis), (size,), mesh)[0]))


def _parameters(state: TrainState) -> tuple[set[int], set[int]]:
    """(elements of each parameter's shard, of all layers together; elements of a matrix as it is used, of one layer: whole, or
    gathered over some of the mesh axes that split it)."""
    stored, gathered = set(), set()
    for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.frozen)):
        stored.add(prod(x.sharding.shard_shape(x.shape)))
        is_stacked = any(f"'{name}'" in jax.tree_util.keystr(path) for name in STACKS)
        shape = x.shape[1:] if is_stacked else x.shape
        if len(shape) > 1:
            splits = [x.sharding.mesh.shape[axis] for entry in x.sharding.spec for axis in axes_in(entry)]
            kept = itertools.chain.from_iterable(itertools.combinations(splits, n) for n in range(len(splits) + 1))
            gathered |= {prod(shape) // prod(some) for some in kept}
    return stored, gathered


def spills(module: Module, design: Design) -> list[str]:
    """The arrays that are written and that the design does not have, in words, largest first."""
    found: dict[Array, str] = {}
    for instruction, array in _written(module):
        what = _judged(module, instruction, array, design)
        if what is not None:
            found.setdefault(array, what)
    ordered = sorted(found.items(), key=lambda each: -each[0].bytes)
    return [f"{array.dtype}{list(array.shape)} ({array.bytes / 2**30:.2f} GiB, {what})" for array, what in ordered]


def _written(module: Module) -> Iterator[tuple[Instruction, Array]]:
    """The arrays in HBM that are results of executed instructions; what happens inside a fusion is not written."""
    for _, instruction, _, fused in module.executed():
        if not fused and instruction.opcode not in NO_ARRAY:
            yield from ((instruction, array) for array in instruction.arrays if array.space == 0)


def _judged(module: Module, instruction: Instruction, array: Array, design: Design) -> str | None:
    """What an array is if the design does not have it; None if it does."""
    if array.dtype == WORKSPACE and instruction.opcode == "custom-call":
        return None
    large = array.elements > design.small
    if large and array.elements in design.weights and _is_float32_copy(module, instruction, array):
        return "a float32 copy of weights"
    if design.has(array):
        return None
    if design.taps and Size(design.taps, FLOAT32).holds(array):
        return "the features of every tap"
    if design.vocabulary & set(array.shape):
        return "logits of more targets than a chunk has"
    if array.elements % design.heads == 0:
        return f"as large as attention scores of {array.elements // design.heads} pairs a head"
    return "no array of the design"


def _is_float32_copy(module: Module, instruction: Instruction, array: Array) -> bool:
    """Whether the instruction converts a bfloat16 array of as many elements to this float32 one, in whatever shape."""
    if array.dtype != "f32" or instruction.opcode not in ("convert", "fusion"):
        return False
    if instruction.opcode == "convert":
        return True
    inner = module.computations[instruction.called["calls"][0]].instructions
    converted = ((each.arrays[0], inner[each.operands[0]].arrays[0]) for each in inner.values() if each.opcode == "convert")
    return any((to.dtype, of.dtype, to.elements) == ("f32", "bf16", array.elements) for to, of in converted)
