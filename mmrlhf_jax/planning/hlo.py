"""Parses the HLO text of a compiled program, and lists the instructions that a run executes, loop bodies times trip counts.

XLA's own `cost_analysis` counts a loop's body once, whatever its trip count, so a scan over layers would count as one layer.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32, "u32": 32}
BITS |= {"f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "f8e4m3fn": 8, "f8e5m2": 8}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+[\da-z]*)\[([\d,]*)\](?:\{(?:[^{}]*?\bS\((\d+)\))?[^{}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(?:%([\w.\-]+)|\{([^}]*)\})")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in HLO text."""

    dtype: str
    shape: tuple[int, ...]
    space: int = dataclasses.field(default=0, compare=False)  # memory space: 0 is HBM, others are on-chip memories

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass
class Instruction:
    """An HLO instruction; `attributes` is the rest of its line after the operands."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the result; for a tuple, its arrays in order
    operands: tuple[str, ...]  # names of instructions; for a parameter its number, for a constant its value
    attributes: str

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def called(self) -> dict[str, list[str]]:
        """Names of called computations, by role ("body", "condition", "to_apply", ...)."""
        found: dict[str, list[str]] = {}
        for role, one, several in _CALLED.findall(self.attributes):
            found.setdefault(role, []).extend([one] if one else _OPERAND.findall(several))
        return found


@dataclasses.dataclass
class Computation:
    """An HLO computation: its instructions by name, and the name of its root."""

    name: str
    instructions: dict[str, Instruction]
    root: str = ""


@dataclasses.dataclass
class Module:
    """An HLO module: its computations by name, and the name of the entry computation."""

    entry: str
    computations: dict[str, Computation]

    @property
    def uncounted_loops(self) -> int:
        """The number of executed loops whose trip count cannot be found; their bodies are counted once."""
        loops = (each for each in self.executed() if each[1].opcode == "while")
        return sum(self._trips(computation, loop) is None for computation, loop, _, _ in loops)

    def executed(self) -> Iterator[tuple[Computation, Instruction, float, bool]]:
        """Yield (computation, instruction, times, is inside a fusion) for all that one run executes; all branches of a
        conditional count as executed."""
        yield from self._walk(self.entry, 1.0, False)

    def _walk(self, name: str, times: float, fused: bool):
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield computation, instruction, times, fused
            called = instruction.called
            if instruction.opcode == "while":
                trips = self._trips(computation, instruction)
                for body in called.get("body", ()):
                    yield from self._walk(body, times * (1 if trips is None else trips), fused)
            elif instruction.opcode in ("fusion", "call", "async-start", "conditional", "custom-call"):
                inside = fused or instruction.opcode == "fusion"
                for callee in [c for role in ("calls", "to_apply", "branch_computations") for c in called.get(role, ())]:
                    yield from self._walk(callee, times, inside)

    def _trips(self, computation: Computation, loop: Instruction) -> int | None:
        """A loop's trip count: as annotated by XLA, or from its condition `counter < limit` and the body's increment. None if
        neither can be found."""
        noted = _TRIPS.search(loop.attributes)
        if noted:
            return int(noted[1])
        condition, body = (self.computations[loop.called[role][0]] for role in ("condition", "body"))
        compare = condition.instructions.get(condition.root)
        if compare is None or compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        counter, limit = (condition.instructions[name] for name in compare.operands)
        index = re.search(r"index=(\d+)", counter.attributes)
        if limit.opcode != "constant" or index is None:
            return None
        place = int(index[1])
        step = _added(self, body, _element(body, body.root, place))
        first = _constant(computation, _element(computation, loop.operands[0], place))
        return None if step is None or step < 1 or first is None else max(-(-(int(limit.operands[0]) - first) // step), 0)


def _element(computation: Computation, name: str, place: int) -> str:
    """The name of the operand at index `place` of a tuple instruction; "" if `name` is no tuple instruction."""
    made = computation.instructions.get(name)
    return made.operands[place] if made is not None and made.opcode == "tuple" else ""


def _behind_copies(computation: Computation, name: str) -> Instruction | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = computation.instructions.get(instruction.operands[0])
    return instruction


def _constant(computation: Computation, name: str) -> int | None:
    instruction = _behind_copies(computation, name)
    is_number = instruction is not None and instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.operands[0])
    return int(instruction.operands[0]) if is_number else None


def _added(module: Module, computation: Computation, name: str) -> int | None:
    """The constant that an instruction adds to a counter, looked up through copies and fusions; None if it is not found."""
    instruction = _behind_copies(computation, name)
    if instruction is not None and instruction.opcode == "fusion":
        inner = module.computations[instruction.called["calls"][0]]
        return _added(module, inner, inner.root)
    if instruction is None or instruction.opcode != "add":
        return None
    return next((n for operand in instruction.operands if (n := _constant(computation, operand)) is not None), None)


def parse(text: str) -> Module:
    """Parse the text of `compiled.as_text()` or of an XLA dump."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        header = _HEADER.match(line) if not line.startswith(" ") else None
        if header:
            current = computations[header[2]] = Computation(header[2], {})
            entry = header[2] if header[1] else entry
            continue
        found = _INSTRUCTION.match(line) if current is not None else None
        if found:
            instruction = _instruction(found[2], found[3])
            current.instructions[instruction.name] = instruction
            current.root = instruction.name if found[1] else current.root
    return Module(entry, computations)


def _instruction(name: str, rest: str) -> Instruction:
    end = _balanced(rest) if rest.startswith("(") else rest.index(" ")
    arrays = tuple(Array(kind, _ints(sizes), int(space or 0)) for kind, sizes, space in _ARRAY.findall(rest[:end]))
    rest = rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _balanced("(" + rest) - 1
    inside, opcode = rest[: end - 1], opcode.strip()
    operands = (inside,) if opcode in ("parameter", "constant") else tuple(_OPERAND.findall(inside))
    return Instruction(name, opcode, arrays, operands, rest[end:])


def _balanced(text: str) -> int:
    """The index after the parenthesis that closes the first one."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def flops(module: Module) -> float:
    """Matrix FLOPs of one run on one device (a multiply-add counts 2); for kernels, the cost estimate in their attributes."""
    total = 0.0
    for computation, instruction, times, _ in module.executed():
        match instruction.opcode:
            case "dot":
                total += times * _dot(computation, instruction)
            case "convolution":
                total += times * _convolution(computation, instruction)
            case "custom-call":
                estimate = re.search(r'"?flops"?\s*:\s*"?(\d+)', instruction.attributes)
                total += times * (int(estimate[1]) if estimate else 0)
    return total


def _dot(computation: Computation, dot: Instruction) -> float:
    left = computation.instructions[dot.operands[0]].arrays[0]
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    return 2.0 * dot.arrays[0].elements * math.prod(left.shape[i] for i in _ints(contracted[1] if contracted else ""))


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
