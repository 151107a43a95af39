"""Sections of a configuration: frozen, validated, read from YAML files, with errors of one line that name file and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import pydantic
import yaml
from etils import epath

from mmrlhf_jax.errors import UserError


class Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


AnySection = TypeVar("AnySection", bound=Section)


def validate(kind: type[AnySection], raw: dict[str, Any], where: str) -> AnySection:
    """A section of `raw` keys and values. Raises UserError that opens with `where` and names the first wrong key."""
    try:
        return kind.model_validate(raw)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {_first_error(kind, error)}") from None


def resolved(section: Section) -> str:
    """The complete section as YAML, every default written out."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_with_base(path: epath.Path) -> dict[str, Any]:
    """A file's keys over those of the one file that its `base:` names, if it names one."""
    raw = read(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise UserError(f"{path}: base: expected the name of a file, found {base!r}")
    parent = read(path.parent / base)
    if "base" in parent:
        raise UserError(f"{path.parent / base}: a base may not have a base itself; name the first file in {path}")
    return _merge(parent, raw)


def read(path: epath.Path) -> dict[str, Any]:
    """Keys and values of a YAML file. Raises UserError that names file and line."""
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    raw = _parse(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, found {type(raw).__name__}")
    return raw


def _parse(text: str, where: str) -> Any:
    """YAML to values. Raises UserError that opens with `where` and, in a text of several lines, names the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date of month 13, say
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where}{line}: not valid YAML ({reason})") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-6 as a string; here it is a number. A key given twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins; sections merge key by key. A different `kind` replaces a section whole: its keys mean something else."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        sections = isinstance(value, dict) and isinstance(old, dict) and key != "losses"
        same_kind = sections and value.get("kind", old.get("kind")) == old.get("kind")
        merged[key] = _merge(old, value) if same_kind else value
    return merged


def override(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`raw` with every `a.b=c` of the command line laid over it."""
    for setting in overrides:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting!r}: expected key=value, such as optimizer.learning_rate=1e-6")
        parsed = _parse(value, f"--set {setting!r}")
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        raw = _merge(raw, parsed)
    return raw


def _first_error(kind: type[Section], error: pydantic.ValidationError) -> str:
    """One line for the first problem; for an unknown key, with the nearest known one."""
    # Where a key takes one of several types, each of them has its error: the one that went deepest is what was meant.
    first = max(error.errors(), key=lambda found: len(found["loc"]))
    path = [str(part) for part in first["loc"]]
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    if first["type"] != "extra_forbidden":
        key = ".".join(path)
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}{more}" if key else message + more
    holder, names = _resolve(kind, path[:-1])
    near = difflib.get_close_matches(path[-1], list(holder.model_fields), 1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown key {'.'.join([*names, path[-1]])!r}{hint}{more}"


def _resolve(kind: type[Section], path: Sequence[str]) -> tuple[type[Section], list[str]]:
    """The section that an error's path leads to, and the path as the file spells it: where a key takes one of several types,
    pydantic adds which one it tried."""
    names, options = [], [kind]
    for part in path:
        field = options[0].model_fields.get(part) if len(options) == 1 else None
        if field is not None:
            names.append(part)
            options = _sections(field.annotation) or options
        else:
            options = [option for option in options if part in _tags(option)] or options
            names += [part] if part.isdecimal() else []
    return options[0], names


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation allows, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]


def _tags(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()
