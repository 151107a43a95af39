"""Whether two programs are the same one up to names, to the order of parameters and results, and to where their source lies.

A program is read as a graph: a node per instruction, an edge from every instruction to each of its operands and to the
computations that it calls. Nodes get colours: first by what an instruction says itself, then again and again by that together
with the colours at the other ends of its edges, until no two equal ones become different (Weisfeiler and Leman's refinement).
The same program has the same colours, each as often. The converse is certain where every instruction ends with a colour of its
own, which nearly all do.

Some orders follow from names alone, because JAX sorts the leaves of a dictionary by key: that of the entry's parameters and
results, and that of what a loop carries. They do not count. The order of operands does. The order in which instructions are
listed is the schedule; `Program.listed` tells apart what differs in it alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter, defaultdict

from tests.programs.hlo import Instruction, Module, parse, split

_REFERENCE = re.compile(r"%([\w.\-]+)")
_INDUCTION = re.compile(r'"known_induction_variable":\{"tuple_index":"(\d+)"\}')
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{\}, ([\w-]+)\)")
_DONOR = re.compile(r"\((\d+), \{\}\)")
# Of the module's header: shapes that the parameters repeat, and what becomes edges and labels of parameters.
_ELSEWHERE = ("entry_computation_layout", "input_output_alias", "buffer_donor")

RESULT = "slots of the result"
Node = tuple[str, str]  # computation and instruction; (computation, "") is the computation itself


@dataclasses.dataclass(frozen=True)
class Program:
    """`colours`: that of every instruction, comparable within this process. `listed`: also the order of the instructions."""

    module: Module
    colours: dict[Node, int]
    digest: int
    listed: int

    @property
    def name(self) -> str:
        return self.module.name

    @property
    def size(self) -> int:
        return sum(map(len, self.module.computations.values()))


def read_program(text: str) -> Program:
    """ValueError where the text is not that of a whole program."""
    module = parse(text)
    graph = _Graph(module)
    colours = graph.colours()
    order = [
        tuple(colours[name, each.name] for each in body if name != module.entry or each.opcode != "parameter")
        for name, body in module.computations.items()
    ]
    return Program(module, colours, hash(tuple(sorted(Counter(colours.values()).items()))), hash(tuple(sorted(order))))


def difference(old: Program, new: Program, most: int = 40) -> list[str]:
    """The first lines of a unified diff. Instructions are named by opcode; where that shows nothing, by colour as well."""
    for coloured in (False, True):
        texts = [_listing(program, coloured) for program in (old, new)]
        if diff := list(difflib.unified_diff(*texts, "old", "new", lineterm="", n=1)):
            break
    shown = [line[:300] for line in diff[:most]]
    return shown + ([f"... {len(diff) - most} lines more"] if len(diff) > most else [])


def _listing(program: Program, coloured: bool) -> list[str]:
    """The program's lines without names that are counted up. Parameters of the entry are sorted, and have no number."""
    listed = []
    for computation, body in program.module.computations.items():
        names = {each.name: f"%{each.opcode}" for each in body}
        if coloured:
            names = {name: f"{opcode}.{program.colours[computation, name]:x}" for name, opcode in names.items()}
        inputs, rest = [], []
        for each in body:
            if computation == program.module.entry and each.opcode == "parameter":
                inputs.append(_line(dataclasses.replace(each, literal=""), names))
            else:
                rest.append(_line(each, names))
        listed += ["{", *sorted(inputs), *rest, "}"]
    return listed


def _line(each: Instruction, names: dict[str, str]) -> str:
    operands = ", ".join(names[operand] for operand in each.operands) or each.literal
    said = "".join(f", {key}={_REFERENCE.sub('%', value)}" for key, value in sorted(each.attributes.items()))
    return f"  {'ROOT ' * each.root}{names[each.name]} = {each.shape} {each.opcode}({operands}){said}"


class _Graph:
    """`labels`: what a node says itself. `edges`: what is at their other ends, and of which kind they are; both ways."""

    def __init__(self, module: Module):
        self.module = module
        self.labels: dict[Node, int] = {}
        self.edges: dict[Node, list[tuple[int, Node]]] = defaultdict(list)
        # Tuples whose elements have no order of their own: of which slots they are, and as what.
        self.unordered: dict[Node, tuple[str, str]] = {}
        result = next(each for each in module.computations[module.entry] if each.root)
        if result.opcode == "tuple":
            self.unordered[module.entry, result.name] = RESULT, "result"
        for computation, body in module.computations.items():
            self.labels[computation, ""] = hash("computation")
            self._find_loops(computation, body)
        for computation, body in module.computations.items():
            for each in body:
                self.labels[computation, each.name] = hash(self._label(computation, each))
        for computation, body in module.computations.items():
            for each in body:
                self._connect(computation, each)
        self._connect_header()

    def colours(self) -> dict[Node, int]:
        """Of instructions and computations. Equal ones are alike in what they say, come from and are used for."""
        colours, count = self.labels, 0
        while count < (count := len(set(colours.values()))):
            colours = {
                node: hash((colours[node], *sorted((kind, colours[other]) for kind, other in self.edges[node])))
                for node in colours
            }
        return {node: colour for node, colour in colours.items() if node[0] in self.module.computations}

    def _find_loops(self, computation: str, body: list[Instruction]) -> None:
        """Loops that nothing sees as a whole: what they carry is made as a tuple, read by element and left as a tuple."""
        for loop in (each for each in body if each.opcode == "while"):
            inner, condition = (_REFERENCE.match(loop.attributes[part])[1] for part in ("body", "condition"))
            carried = [(computation, loop.name)]
            carried += [(name, _only(self.module.computations[name], "parameter")) for name in (inner, condition)]
            start = next(each for each in body if each.name == loop.operands[0])
            end = next(each for each in self.module.computations[inner] if each.root)
            new = not any(node in self.unordered for node in carried)  # no other loop has this body or condition
            read = all(each.opcode == "get-tuple-element" for node in carried for each in self._users(*node))
            if start.opcode == end.opcode == "tuple" and new and read and self._users(computation, start.name) == [loop]:
                slots = f"slots of {inner}"
                self.unordered |= {node: (slots, "carried") for node in carried}
                self.unordered |= {(computation, start.name): (slots, "start"), (inner, end.name): (slots, "next")}

    def _users(self, computation: str, name: str) -> list[Instruction]:
        return [each for each in self.module.computations[computation] if name in each.operands]

    def _label(self, computation: str, each: Instruction) -> tuple:
        shape, literal, attributes = each.shape, each.literal, dict(each.attributes)
        if (computation, each.name) in self.unordered:
            shape = sorted(split(shape[1:-1]))
            if "backend_config" in attributes:
                attributes["backend_config"] = _INDUCTION.sub("", attributes["backend_config"])
        if each.opcode == "get-tuple-element" and (computation, each.operands[0]) in self.unordered:
            del attributes["index"]
        if computation == self.module.entry and each.opcode == "parameter":
            literal = ""
        said = sorted((key, _REFERENCE.sub("%", value)) for key, value in attributes.items())
        return each.opcode, str(shape), literal, str(said), each.root

    def _connect(self, computation: str, each: Instruction) -> None:
        node = computation, each.name
        self._edge(node, "in", (computation, ""))
        slots, role = self.unordered.get(node, (None, None))
        for i, operand in enumerate(each.operands):
            source = computation, operand
            if slots is not None and role != "carried":
                self._edge(self._slot(slots, i), role, source)
            else:
                self._edge(node, f"operand {i}", source)
        if each.opcode == "get-tuple-element" and (computation, each.operands[0]) in self.unordered:
            self._edge(node, "element", self._slot(self.unordered[computation, each.operands[0]][0], each.attributes["index"]))
        if each.opcode == "while" and (found := _INDUCTION.search(each.attributes.get("backend_config", ""))) and slots:
            self._edge(node, "counter", self._slot(slots, found[1]))
        for key, value in each.attributes.items():
            for name in _REFERENCE.findall(value):
                self._edge(node, key, (name, "") if name in self.module.computations else (computation, name))

    def _connect_header(self) -> None:
        """What the module's header says, and which results and parameters share their memory."""
        entry, header = self.module.entry, self.module.header
        parameters = {each.literal: each.name for each in self.module.computations[entry] if each.opcode == "parameter"}
        results = self.unordered.keys() & {(entry, each.name) for each in self.module.computations[entry] if each.root}
        for output, parameter, kind in _ALIAS.findall(header.get("input_output_alias", "")):
            place = self._slot(RESULT, output) if results else (entry, "")
            self._edge(place, f"alias {kind}", (entry, parameters[parameter]))
        for parameter in _DONOR.findall(header.get("buffer_donor", "")):
            self._edge((entry, ""), "donor", (entry, parameters[parameter]))
        said = [(key, sorted(re.split("[,;{}]", value))) for key, value in header.items() if key not in _ELSEWHERE]
        self.labels[entry, ""] = hash(("entry", str(sorted(said))))

    def _slot(self, slots: str, number: int | str) -> Node:
        node = slots, str(number)
        self.labels.setdefault(node, hash("slot"))
        return node

    def _edge(self, here: Node, kind: str, there: Node) -> None:
        if there not in self.labels:
            raise ValueError(f"{here[1]}: {there[1]} is not in the program")
        self.edges[here].append((hash(kind), there))
        self.edges[there].append((hash(f"of {kind}"), here))


def _only(body: list[Instruction], opcode: str) -> str:
    (name,) = (each.name for each in body if each.opcode == opcode)
    return name
