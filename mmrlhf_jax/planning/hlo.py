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
        found = _limit(self, condition)
        if found is None:
            return None
        place, limit = found
        step = _added(self, body, _element(body, body.root, place))
        first = _constant(computation, _element(computation, loop.operands[0], place))
        return None if step is None or step < 1 or first is None else max(-(-(limit - first) // step), 0)


def _limit(module: Module, condition: Computation) -> tuple[int, int] | None:
    """(index of the counter in the loop's tuple, constant that it must be below) of a condition `counter < limit`, which GPUs
    compute in a fusion; None if the condition is another one."""
    compare, outside = condition.instructions.get(condition.root), {}
    if compare is not None and compare.opcode == "fusion":
        inner = module.computations[compare.called["calls"][0]]
        outside = {
            each.name: compare.operands[int(each.operands[0])]
            for each in inner.instructions.values()
            if each.opcode == "parameter"
        }
        compare = inner.instructions.get(inner.root)
    if compare is None or compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    known = {**condition.instructions, **(inner.instructions if outside else {})}
    counter, limit = (known[outside.get(name, name)] for name in compare.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    return (int(index[1]), int(limit.operands[0])) if limit.opcode == "constant" and index is not None else None


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
    arrays = tuple(Array(kind, ints(sizes), int(space or 0)) for kind, sizes, space in _ARRAY.findall(rest[:end]))
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


def ints(text: str) -> tuple[int, ...]:
    """The numbers of a list like `1,2,3`."""
    return tuple(int(part) for part in text.split(",") if part)
