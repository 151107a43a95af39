"""The tokens that end a model's text: from `generation_config.json`, else from `config.json`, as in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_json_object

FILE = "generation_config.json"


def end_tokens(directory: Path) -> tuple[int, ...]:
    """The ids of all tokens that end a text; empty if neither file names one.

    Raises UserError if they are no ids.
    """
    for name in (FILE, "config.json"):
        content = read_json_object(directory / name) if (directory / name).exists() else {}
        inner = content.get("text_config")
        for key, value in (("", content), ("text_config.", inner if isinstance(inner, dict) else {})):
            if value.get("eos_token_id") is not None:
                return _ids(value["eos_token_id"], f"{directory / name}: {key}eos_token_id")
    return ()


def _ids(value: Any, where: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in ids):
        raise UserError(f"{where} is {value!r}; expected the id of a token, or a list of ids")
    return tuple(dict.fromkeys(ids))
