"""Reads YAML by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, chapter 10.3): `yes` is text, 010 is ten, 1e-6 is a number.

PyYAML implements the older 1.1 schema, in which `yes` is true, 010 is eight and 1:30 is ninety. Here unquoted text is a number,
a bool or null exactly if the core schema says so; everything else, including dates, is text.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, ClassVar

import yaml

from mmrlhf_jax.errors import UserError, shown

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)\Z"
)

# (tag, pattern, possible first characters); the first pattern that matches applies.
_CORE = (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)


class Empty(dict):
    """The value of a key without a value. For a section it means the defaults, for any other setting null."""

    def __repr__(self) -> str:
        return "nothing"


def parse(text: str, where: str) -> Any:
    """The value of a YAML text. Raises UserError that begins with `where` and, in a text of several lines, names the line.

    Keys must be text and unique. Anchors and aliases are supported; merge keys (`<<`), which are not part of YAML 1.2, are an
    error.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Empty() if node is None else loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where}: not valid YAML (nested too deeply)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where}{line}: not valid YAML ({reason})") from None


def parse_value(text: str, where: str) -> Any:
    """Like `parse`, for a single value, in which a comment is an error: in `runs/try #2` it is probably meant as text."""
    value = parse(text, where)
    # Between tokens there can only be spaces and comments.
    for before, after in itertools.pairwise(yaml.scan(text)):
        gap = text[before.end_mark.index : after.start_mark.index]
        if "#" in gap:
            raise UserError(
                f"{where}: YAML takes {gap.strip()!r} for a comment and would ignore it; write the value in quotes of its own,"
                """ as in key='"a #b"', or leave the comment out"""
            )
    return value


def dump(value: Any, *, ascii_only: bool = False) -> str:
    """YAML text of a value. Text that YAML 1.1 would read as another type is quoted as well. With `ascii_only` other
    characters are escaped."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only)


def is_number(text: str) -> bool:
    """Whether the text would be read as a number without quotes."""
    return bool(_INT.match(text) or _FLOAT.match(text))


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar[dict] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("str", "seq", "map")
    }

    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name == "<<" and key.style is None:
                problem = "merge keys (<<) are not read; write the keys out, or name a common file as `base:`"
            elif not isinstance(name, str):
                problem = f"key {shown(name)} is no text; write it in quotes"
            elif name in seen:
                problem = f"key {shown(name)} is given twice"
            else:
                seen.add(name)
                continue
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        # Not SafeConstructor's method, which would process merge keys; they have been refused above.
        return yaml.constructor.BaseConstructor.construct_mapping(self, node, deep=deep)


class _Dumper(yaml.SafeDumper):
    def represent_str(self, text: str) -> yaml.ScalarNode:
        # In PyYAML's other styles these characters end a line and would be read back as spaces.
        style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _tag, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def _constructor(pattern: re.Pattern, convert, what: str):
    """A constructor that checks the pattern again, because a value with an explicit tag (`!!int "010"`) skips the resolvers."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        if not pattern.match(text):
            raise yaml.MarkedYAMLError(problem=f"{shown(text)} is {what}", problem_mark=node.start_mark)
        try:
            return convert(text)
        except ValueError:  # Python refuses integers with thousands of digits
            raise yaml.MarkedYAMLError(problem="a number of too many digits", problem_mark=node.start_mark) from None

    return construct


def _to_int(text: str) -> int:
    return int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text, 10)


def _to_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _constructor(_INT, _to_int, "no whole number"))
_Loader.add_constructor("tag:yaml.org,2002:float", _constructor(_FLOAT, _to_float, "no number"))
_Loader.add_constructor("tag:yaml.org,2002:bool", _constructor(_BOOL, lambda text: text.lower() == "true", "not true or false"))
_Loader.add_constructor(
    "tag:yaml.org,2002:null", _constructor(_NULL, lambda text: None if text else Empty(), "something, and no null")
)
