"""The chat templates of a model directory: read from the four places that may hold them, written to one.

The order is that of transformers' processors (`ProcessorMixin.get_processor_dict`), then of its tokenizers: the first place
that has a template counts; a different template in another place is ignored, with a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.huggingface.weight_files import say_once

DEFAULT = "default"
PROCESSOR, LEGACY, FILE = "processor_config.json", "chat_template.json", "chat_template.jinja"
FOLDER, TOKENIZER = "additional_chat_templates", "tokenizer_config.json"
KEY = "chat_template"


def read_chat_templates(directory: Path) -> dict[str, str]:
    """The Jinja texts by name; `default` is the one that conversations are written with. Empty if there is none.

    Raises UserError for files that hold something else.
    """
    found: dict[str, str] = {}
    origin: dict[str, str] = {}
    for place, templates in _places(directory):
        for name, text in templates.items():
            if name not in found:
                found[name], origin[name] = text, place
            elif found[name] != text:
                which = "the chat template" if name == DEFAULT else f"the chat template {name!r}"
                say_once(f"{directory}: {which} is that of {origin[name]}; {place} has another, which is ignored")
    return found


def write_chat_templates(directory: Path, templates: Mapping[str, str]) -> None:
    """Make these the only chat templates of a directory; the default is `chat_template.jinja`, as transformers writes it."""
    (directory / LEGACY).unlink(missing_ok=True)
    for path in (directory / PROCESSOR, directory / TOKENIZER):
        content = _json(path)
        if KEY in content:
            content.pop(KEY)
            path.write_text(strict_json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    for name, text in templates.items():
        path = directory / FILE if name == DEFAULT else directory / FOLDER / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def _places(directory: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, templates by name), in order of precedence."""
    for name in (PROCESSOR, LEGACY):
        yield name, _named(_json(directory / name).get(KEY), directory / name)
    if (directory / FILE).exists():
        yield FILE, {DEFAULT: _read(directory / FILE)}
    for path in sorted((directory / FOLDER).glob("*.jinja")):
        yield f"{FOLDER}/{path.name}", {path.stem: _read(path)}
    yield TOKENIZER, _named(_json(directory / TOKENIZER).get(KEY), directory / TOKENIZER)


def _named(value: Any, path: Path) -> dict[str, str]:
    """One text, texts by name, or a list of {"name", "template"}, as tokenizers stored several."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        value = {each.get("name"): each.get("template") for each in value}
    texts = isinstance(value, dict) and all(isinstance(each, str) for each in (*value, *value.values()))
    if texts and all(name and Path(name).name == name for name in value):  # the names are used as file names
        return value
    raise UserError(f"{path}: {KEY} is neither a text nor texts by name")


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
