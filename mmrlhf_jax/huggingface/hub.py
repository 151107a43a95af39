"""Finds a model: a directory of this machine, or a hub id that is downloaded into the Hugging Face cache. No jax here."""

from __future__ import annotations

import os
from pathlib import Path

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import first_line
from mmrlhf_jax.files import expand_home, is_remote
from mmrlhf_jax.hub_id import HUB_ID

ADAPTER = "adapter_config.json"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


def local_directory(model: str | os.PathLike[str]) -> Path:
    """The directory of a model: the given one, or a hub id (`org/name`) downloaded into the Hugging Face cache.

    Raises UserError if it is neither, if the download fails, and for a run or an adapter instead of a model.
    """
    path = find_directory(model)
    if (path / ADAPTER).exists():
        if (path / "config.json").exists():
            raise UserError(
                f"{path}: holds a model and a PEFT adapter ({ADAPTER}); move one of them to another directory, so that it is"
                " clear which is meant"
            )
        raise UserError(
            f"{path}: a PEFT adapter, not a model: `mmrlhf export {path} OUT` merges it into its base; then give OUT here"
        )
    if (path / "checkpoints").is_dir() and (path / "config.yaml").exists():
        raise UserError(f"{path}: a run, not a model: `mmrlhf export {path} OUT` makes one of it; then give OUT here")
    return path


def find_directory(model: str | os.PathLike[str]) -> Path:
    """The directory, found like that of `local_directory`, without a check of what it holds."""
    if is_remote(model):
        raise UserError(f"{model}: models are read from a directory of this machine or from the hub (org/name); copy it here")
    path = Path(expand_home(os.fspath(model)))
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path}: not a directory; a model is a directory with config.json and safetensors weights")
    if not HUB_ID.fullmatch(str(model)):
        raise UserError(f"{path}: no such directory; give a model directory or a hub id (org/name)")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(str(model), allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{model}: no such directory, and the hub does not give it ({first_line(error)})") from None
