"""Which family a model is of, and its sizes, before any of its weights is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etils import epath

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.hub_id import is_hub_id
from mmrlhf_jax.huggingface.chat_templates import DEFAULT, read_chat_templates
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.tensors import StoredTensors
from mmrlhf_jax.models.family import Checkpoint, Family, ModelConfig
from mmrlhf_jax.models.registry import find_family, published_config

# The dtypes that a config.json may name. They are checked here because transformers, which reads the config before the
# tokenizer, would report another one as an error of the tokenizer.
STATED_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


def open_checkpoint(directory: epath.PathLike) -> tuple[Family, Checkpoint]:
    """(the family of the model in a directory, what it is read from).

    Raises UserError where there is no config.json, or where it is of no family.
    """
    directory = epath.Path(directory)
    path = directory / "config.json"
    if not path.exists():
        raise UserError(f"{directory}: no config.json; a model is a Hugging Face directory with config and safetensors weights")
    config = read_json_object(path)
    family = find_family(config, str(path))
    file = lambda name: read_json_object(directory / name) if (directory / name).exists() else None
    shapes = lambda: StoredTensors(directory, family.names.pieces).shapes
    chat_template = lambda: read_chat_templates(Path(directory)).get(DEFAULT)
    return family, Checkpoint(config, file, shapes, chat_template, str(path), str(directory))


def read_config(directory: epath.PathLike) -> ModelConfig:
    """The sizes of the model in a directory, in either naming. Raises UserError where this project cannot run it."""
    family, checkpoint = open_checkpoint(directory)
    return family.read(checkpoint)


def known_sizes(path: str) -> ModelConfig:
    """The sizes of a model: the published ones for the hub id of a published model, else those read from its directory.

    Raises UserError if the directory holds no model.
    """
    published = published_config(path) if is_hub_id(path) else None
    return published or read_config(local_directory(path))


def check_dtype(config: dict[str, Any], where: str) -> None:
    """UserError for a dtype that no model has."""
    for key in ("dtype", "torch_dtype"):
        if isinstance(config.get(key), str) and config[key] not in STATED_DTYPES:
            known = ", ".join(STATED_DTYPES)
            raise UserError(f"{where}: {key} {config[key]!r} is not one of {known}")
