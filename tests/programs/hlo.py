"""The text of an optimised program (HLO), read into computations and instructions."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from collections.abc import Iterator

# Where the source of an instruction lies, and numbers that XLA counts up. None of it decides what is computed.
_DROPPED = ("metadata", "channel_id")
_CHAIN = re.compile(r'chain_id="\d+"')
# The instruction and the computation that a collective was lowered from, serialised with their metadata; the collective itself
# says the same.
_ORIGIN = re.compile(r'"original_(instruction|to_apply)":"[^"]*",?')
_KERNEL = re.compile(r'"body":"([^"]*)"')
_COMMENT = re.compile(r"/\*index=\d+\*/")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%([\w.\-]+) = ")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[()\[\]{}]|, ')


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]  # names of instructions of the same computation
    literal: str  # a constant's value, a parameter's number
    attributes: dict[str, str]
    root: bool


@dataclasses.dataclass(frozen=True)
class Module:
    name: str
    header: dict[str, str]
    computations: dict[str, list[Instruction]]
    entry: str


def parse(text: str) -> Module:
    """ValueError where the text is no module, or leaves constants out (`--xla_dump_large_constants=true` prints them all)."""
    if "constant({...})" in text:
        raise ValueError("large constants are left out of this text")
    first, *lines = text.splitlines()
    name, *header = split(first.removeprefix("HloModule "))
    computations: dict[str, list[Instruction]] = {}
    entry, open_in = None, None
    for line in _statements(lines):
        if found := _COMPUTATION.match(line):
            open_in = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            open_in = None
        elif open_in is not None:
            open_in.append(_instruction(line))
    if entry is None:
        raise ValueError(f"no program: {first[:80]!r}")
    return Module(name, dict(_attribute(each) for each in header), computations, entry)


def _statements(lines: list[str]) -> Iterator[str]:
    """One line each; a large constant's value takes several."""
    waiting = ""
    for line in lines:
        if _INSTRUCTION.match(line) or _COMPUTATION.match(line) or line.startswith("}"):
            if waiting:
                yield waiting
            waiting = line
        elif waiting.startswith("  "):
            waiting += line
    if waiting:
        yield waiting


def _instruction(line: str) -> Instruction:
    line = _COMMENT.sub("", line)
    head = _INSTRUCTION.match(line)
    if head is None:
        raise ValueError(f"no instruction: {line[:200]!r}")
    rest = line[head.end() :]
    end = closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest[: rest.index("(")], rest[rest.index("(") :]
    end = closing(rest)
    inside, attributes = rest[1:end], dict(_attribute(each) for each in split(rest[end + 1 :].removeprefix(", ")))
    has_literal = opcode in ("constant", "parameter", "iota") or "%" not in inside
    operands = () if has_literal else tuple(each.split("%")[-1] for each in split(inside))
    kept = {key: _plain(value) for key, value in attributes.items() if key not in _DROPPED}
    return Instruction(head[2], shape, opcode, operands, inside if has_literal else "", kept, bool(head[1]))


def _attribute(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.strip(), value


def _plain(value: str) -> str:
    value = _ORIGIN.sub("", _CHAIN.sub("chain_id", value))
    return _KERNEL.sub(lambda found: f'"body":"{hashlib.sha256(kernel(found[1]).encode()).hexdigest()}"', value)


def kernel(body: str) -> str:
    """A Pallas kernel for TPUs as its program has it (base64 of MLIR's bytecode): as text without the lines of its source."""
    from jax._src.interpreters import mlir
    from jax._src.lib import tpu
    from jax._src.lib.mlir import ir

    context = mlir.make_ir_context()
    tpu.register_dialect(context)
    with context:
        context.allow_unregistered_dialects = True
        return ir.Module.parse(base64.b64decode(body)).operation.get_asm(enable_debug_info=False)


def split(text: str) -> list[str]:
    """At the commas that stand in no bracket and no string."""
    parts, start, depth = [], 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] == ", " and depth == 0:
            parts.append(text[start : token.start()])
            start = token.end()
        depth += (token[0] in "([{") - (token[0] in ")]}")
    return [part for part in (*parts, text[start:]) if part]


def closing(text: str) -> int:
    """The place of the bracket that closes the text's first one."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in "([{") - (token[0] in ")]}")
        if depth == 0 and token[0] != ", ":
            return token.start()
    raise ValueError(f"a bracket is not closed: {text[:80]!r}")
