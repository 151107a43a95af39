"""Matrix FLOPs of a compiled program, from the instructions that one run executes.

A product is a `dot` or `convolution` of the HLO text, on GPUs also a call of cuBLAS or cuDNN. What a kernel computes is known
from the estimate that it was given.
"""

from __future__ import annotations

import math
import re

from mmrlhf_jax.planning.hlo import Computation, Instruction, Module, ints

_TARGET = re.compile(r'custom_call_target="([^"]+)"')
# In the attributes of a kernel for TPUs; of one for GPUs in a string within them, where HLO text writes \22 for a quote.
_ESTIMATE = re.compile(r'flops(?:"|\\22)?\s*:\s*(?:"|\\22)?(\d+)')
_CUBLAS, _CUDNN = "__cublas$", "__cudnn$conv"
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_CONTRACTED_BY_CUBLAS = re.compile(r'"lhs_contracting_dimensions":\[([\d",]*)\]')


def flops(module: Module) -> float:
    """Matrix FLOPs of one run on one device (a multiply-add counts 2); for kernels, the cost estimate in their attributes."""
    return sum(times * _flops(computation, instruction) for computation, instruction, times, _ in module.executed())


def _flops(computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode == "dot":
        return _product(computation, instruction, _CONTRACTED)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode != "custom-call":
        return 0.0
    name = target(instruction)
    if by_cublas(instruction):
        return _product(computation, instruction, _CONTRACTED_BY_CUBLAS)
    if name.startswith(_CUDNN):
        return _cudnn(computation, instruction, name)
    estimate = _ESTIMATE.search(instruction.attributes)
    return float(estimate[1]) if estimate else 0.0


def target(call: Instruction) -> str:
    """The name of the function that a custom call calls."""
    found = _TARGET.search(call.attributes)
    return found[1] if found else ""


def by_cublas(instruction: Instruction) -> bool:
    """Whether the instruction is a product of matrices by cuBLAS."""
    return instruction.opcode == "custom-call" and target(instruction).startswith(_CUBLAS)


def _product(computation: Computation, product: Instruction, contracted: re.Pattern) -> float:
    """FLOPs of a product of matrices, whose result is the instruction's first array."""
    left = computation.instructions[product.operands[0]].arrays[0]
    found = contracted.search(product.attributes)
    dimensions = ints(found[1].replace('"', "")) if found else ()
    return 2.0 * product.arrays[0].elements * math.prod(left.shape[i] for i in dimensions)


def _cudnn(computation: Computation, conv: Instruction, name: str) -> float:
    """FLOPs of a convolution by cuDNN, or of one of its two gradients: each has as many as the convolution itself, of which the
    instruction has images and filter in one order or another. Window positions in the padding count, too."""
    first, second = (computation.instructions[operand].arrays[0] for operand in conv.operands[:2])
    result = conv.arrays[0]
    image, filter_ = {"BackwardInput": (first, second), "BackwardFilter": (second, result)}.get(
        name.removeprefix(_CUDNN), (result, second)
    )
    _, right, _ = re.split(r"_|->", re.search(r"dim_labels=([\w>\-]+)", conv.attributes)[1])
    return 2.0 * image.elements * filter_.elements / filter_.shape[right.index("o")]


def _convolution(computation: Computation, conv: Instruction) -> float:
    """FLOPs of a convolution. TPUs run matrix products as convolutions, batched ones with dilated windows that lie mostly in
    the padding, so only window positions inside the input count."""
    left, right = (computation.instructions[name].arrays[0] for name in conv.operands[:2])
    lhs, rhs, out = re.split(r"_|->", re.search(r"dim_labels=([\w>\-]+)", conv.attributes)[1])
    window = dict(re.findall(r"(\w+)=([\w\-x]+)", (re.search(r"window=\{([^}]*)\}", conv.attributes) or ["", ""])[1]))

    def setting(key: str, i: int, default: str) -> str:
        return window[key].split("x")[i] if key in window else default

    positions = 1
    for i, label in enumerate(sorted(char for char in out if char.isdigit())):
        stride, dilate, base = (int(setting(key, i, "1")) for key in ("stride", "rhs_dilate", "lhs_dilate"))
        low = int(setting("pad", i, "0_0").split("_")[0])
        size, length, count = (
            right.shape[rhs.index(label)],
            left.shape[lhs.index(label)],
            conv.arrays[0].shape[out.index(label)],
        )
        positions *= _valid_positions(count, size, length, stride, dilate, base, low)
    batch, features = (conv.arrays[0].shape[out.index(label)] for label in "bf")
    groups = re.search(r"batch_group_count=(\d+)", conv.attributes)
    return 2.0 * batch * features * right.shape[rhs.index("i")] * positions / (int(groups[1]) if groups else 1)


def _valid_positions(count: int, size: int, length: int, stride: int, dilate: int, base: int, low: int) -> int:
    """How many (output, window) positions of one dimension fall on an element of the input, not on padding."""
    if size == 1 and base == 1 and low == 0 and (count - 1) * stride < length:
        return count
    if size == count and count == length and count > 1024:  # a batch dimension: each position uses only its own element
        return count
    reach = (length - 1) * base
    starts = range(-low, -low + count * stride, stride)
    return sum(0 <= s + w * dilate <= reach and (s + w * dilate) % base == 0 for s in starts for w in range(size))
