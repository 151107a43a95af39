"""Sections of a configuration: frozen, validated, read from YAML files, with one-line errors that name file and key.

A file overrides its base: sections are merged key by key, and all other values are replaced completely, including mappings with
free keys (`losses`, `environment`). `--set a.b=value` overrides only the key that it names, by the same rules.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic
from etils import epath

from mmrlhf_jax import core_yaml
from mmrlhf_jax.core_yaml import Empty
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import expand_home, read_text
from mmrlhf_jax.progress import say
from mmrlhf_jax.setting_types import FROM_FILE


class Section(pydantic.BaseModel):
    """The base of all sections. Numbers must be finite. A key without a value means the defaults for a section or mapping, and
    null for any other setting."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _empty(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        found = {}
        for key, value in raw.items():
            kinds = kinds_of(cls.model_fields[key].annotation) if key in cls.model_fields else ()
            sections = any(_is_section(kind) for kind in kinds)
            if sections and (isinstance(value, Empty) or (value is None and type(None) not in kinds)):
                found[key] = {}
            elif isinstance(value, Empty):
                if dict not in kinds:
                    found[key] = None
            else:
                found[key] = value
        return found


AnySection = TypeVar("AnySection", bound=Section)


def validate(kind: type[AnySection], raw: dict[str, Any], where: str) -> AnySection:
    """A section from `raw` keys and values. Raises UserError that begins with `where` and names the first wrong key."""
    try:
        return kind.model_validate(raw, context=FROM_FILE)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {_first_error(kind, error, raw)}") from None


def resolved(section: Section, *, ascii_only: bool = False) -> str:
    """The complete section as YAML, with all defaults."""
    return core_yaml.dump(section.model_dump(mode="json"), ascii_only=ascii_only)


def read_with_base(kind: type[Section], path: epath.Path) -> dict[str, Any]:
    """The keys and values of a file, merged over those of its `base:` file, if it names one."""
    raw = read(path)
    base = raw.pop("base", None)
    if base is None or isinstance(base, Empty):
        return raw
    if not isinstance(base, str):
        raise UserError(f"{path}: base: expected the name of a file, found {base!r}")
    parent = path.parent / expand_home(base)
    below = read(parent)
    if "base" in below:
        raise UserError(f"{parent}: a base may not have a base itself; name the first file in {path}")
    return _merge([kind], below, raw)


def read(path: epath.Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises UserError that names file and line."""
    raw = read_value(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, found {shown(raw)}")
    return dict(raw)


def read_value(path: epath.Path) -> Any:
    """The value in a YAML file. Raises UserError that names file and line."""
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    return core_yaml.parse(text, str(path))


def _merge(kinds: Sequence[type[Section]], base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` overridden by `over`; sections are merged key by key. A section with a different `kind` is replaced completely,
    because its keys have another meaning.

    `kinds` are the sections that the keys may belong to.
    """
    merged = dict(base)
    for key, value in over.items():
        old, inner = merged.get(key), _sections_at(kinds, key)
        sections = inner and isinstance(value, dict) and isinstance(old, dict)
        same_kind = sections and value.get("kind", old.get("kind")) == old.get("kind")
        merged[key] = _merge(inner, old, value) if same_kind else value
    return merged


def override(kind: type[Section], raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`raw` overridden by every `a.b=c` of the command line. If a key is given twice, the last one is used, with a message.

    UserError if a setting would undo another one, as a setting of `a` after one of `a.b` may.
    """
    settings: dict[str, str] = {}
    for setting in overrides:
        key, equals, _ = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {shown(setting)}: expected key=value, such as optimizer.learning_rate=1e-6")
        if key in settings:
            say(f"--set {key[:100]} is given twice; --set {setting[:100]} counts")
        settings.pop(key, None)
        settings[key] = setting
    # A `kind` replaces its whole section, so it is set before the section's other keys.
    done: list[tuple[list[str], str]] = []
    for key, setting in sorted(settings.items(), key=lambda item: not item[0].endswith(".kind")):
        value, path = core_yaml.parse_value(setting.partition("=")[2], f"--set {shown(setting)}"), key.split(".")
        changed = _set([kind], raw, path, value, setting)
        for earlier, other in done:
            below = path[: len(earlier)] == earlier  # this setting refines the earlier one
            if not below and _held(changed, earlier) != _held(raw, earlier):
                raise UserError(f"--set {shown(setting)} takes away what --set {shown(other)} sets; put both into one of them")
        raw = changed
        done.append((path, setting))
    return raw


def _held(raw: Any, path: Sequence[str]) -> Any:
    """The value at a path of keys; `...` if there is none."""
    for key in path:
        if not isinstance(raw, dict) or key not in raw:
            return ...
        raw = raw[key]
    return raw


def _set(kinds: Sequence[type[Section]], raw: dict[str, Any], path: Sequence[str], value: Any, setting: str) -> dict[str, Any]:
    """`raw`, the keys of one of the sections `kinds`, with only the key at `path` set to `value`."""
    key, *rest = path
    if not rest:
        other_kind = key == "kind" and raw.get(key, value) != value
        return {key: value} if other_kind else _merge(kinds, raw, {key: value})
    inner, held = _sections_at(kinds, key), raw.get(key)
    if inner:
        if not isinstance(held, dict | None):
            raise UserError(f"--set {shown(setting)}: {key} is {shown(held)} and has no keys; set the whole of it")
        return raw | {key: _set(inner, held or {}, rest, value, setting)}
    for part in reversed(rest[1:]):
        value = {part: value}
    field = _field_at(kinds, key)
    if not held and field is not None and dict in kinds_of(field.annotation):  # free keys: the default's other keys are kept
        held = field.get_default(call_default_factory=True)
    return raw | {key: (held if isinstance(held, dict) else {}) | {rest[0]: value}}


def kinds_of(annotation: Any) -> list[Any]:
    """The classes that an annotation allows, including NoneType."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for argument in get_args(annotation) for kind in kinds_of(argument)]
    return [origin or annotation]


def _field_at(kinds: Sequence[type[Section]], key: str) -> Any:
    return next((kind.model_fields[key] for kind in kinds if key in kind.model_fields), None)


def _sections_at(kinds: Sequence[type[Section]], key: str) -> list[type[Section]]:
    """The sections that are allowed as the value of a key of one of `kinds`."""
    fields = [kind.model_fields[key] for kind in kinds if key in kind.model_fields]
    return [kind for field in fields for kind in kinds_of(field.annotation) if _is_section(kind)]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


# Errors --------------------------------------------------------------------------------------------------------------

_NUMBER_TYPES = ("int_type", "float_type")
_WRONG_TYPES = (*_NUMBER_TYPES, "int_from_float", "finite_number", "bool_type", "string_type", "dict_type", "model_type")
# Replacements for messages that pydantic phrases in terms of Python.
_PLAIN = {
    "tuple_type": "expected a list, as in [a, b]",
    "model_attributes_type": "expected keys and values",
    "too_short": "the list is empty",
}
_WRONG_TYPES += ("tuple_type", "model_attributes_type")


def _first_error(kind: type[Section], error: pydantic.ValidationError, raw: Any) -> str:
    """One line for the first error; for an unknown key, with the most similar known one."""
    # If a key allows several types, there is an error for each; the one with the longest path is probably the type that was
    # meant.
    first = max(error.errors(), key=lambda found: len(found["loc"]))
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    key = _spelled(raw, first["loc"])
    *above, last = [str(part) for part in first["loc"]] or [""]
    if first["type"] in ("union_tag_not_found", "union_tag_invalid"):
        tags = [tag for section in _sections_at([_holder(kind, above)], last) for tag in _tags(section)]
        found = f", found {shown(first['input'].get('kind'))}" if first["type"] == "union_tag_invalid" else ""
        return f"{key}.kind: choose from {', '.join(tags)}{found}{more}"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(last, list(_holder(kind, above).model_fields), 1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {shown(key)}{hint}{more}"
    message = _PLAIN.get(first["type"], first["msg"].removeprefix("Value error, ")) + _found(first)
    return f"{key}: {message}{more}" if key else message + more


def _spelled(raw: Any, place: Sequence[str | int]) -> str:
    """The path of an error, as written in the file. If a key allows several types, pydantic adds the tried type's name to
    it."""
    names = []
    for number, part in enumerate(place, 1):
        inside = (isinstance(raw, dict) and part in raw) or (isinstance(raw, list | tuple) and isinstance(part, int))
        if inside:
            raw = raw[part]
        # A last part that is not in `raw` is a missing key, unless it is one of pydantic's additions.
        if inside or (number == len(place) and str(part).isidentifier() and isinstance(raw, dict | None)):
            names.append(str(part))
    return ".".join(names)


def _found(error: Any) -> str:
    """For a value of the wrong type: the value, and a hint if adding or removing quotes would help."""
    if error["type"] not in _WRONG_TYPES:
        return ""
    value = error["input"]
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else shown(value)
    hint = ""
    if error["type"] == "string_type" and isinstance(value, bool | int | float):
        hint = "; write it in quotes"
    elif error["type"] in _NUMBER_TYPES and isinstance(value, str) and core_yaml.is_number(value):
        hint = "; write it without quotes"
    return f", found {text}{hint}"


def _holder(kind: type[Section], path: Sequence[str]) -> type[Section]:
    """The section at an error's path."""
    options = [kind]
    for part in path:
        field = options[0].model_fields.get(part) if len(options) == 1 else None
        if field is not None:
            options = _sections(field.annotation) or options
        else:
            options = [option for option in options if part in _tags(option)] or options
    return options[0]


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation allows, at any depth."""
    if _is_section(annotation):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]


def _tags(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()
