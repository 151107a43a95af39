"""A digest that identifies a model, computed without reading all of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from etils import epath

from mmrlhf_jax import strict_json
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import exists, read_bytes
from mmrlhf_jax.huggingface.tensors import sampled_bytes, tensor_names
from mmrlhf_jax.huggingface.weight_files import find_weight_files

# Files beside the weights on which a model's outputs depend.
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")


def model_fingerprint(directory: epath.PathLike, **settings) -> str:
    """A digest of a checkpoint: names, shapes and some KB of every tensor, the files in SETTINGS, and `settings`."""
    directory = epath.Path(directory)
    digest = hashlib.sha256(strict_json.dumps(settings, sort_keys=True, default=str).encode())
    found = find_weight_files(Path(directory))
    for path in found.files:  # other weight files in the directory are not the model
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for piece in retried(lambda path=path: list(sampled_bytes(path)), f"{path}"):
            digest.update(piece)
    if chosen := found.chosen(tensor_names):
        digest.update(strict_json.dumps(chosen, sort_keys=True).encode())
    for path in (directory / name for name in SETTINGS):
        if exists(path):
            digest.update(path.name.encode() + read_bytes(path))
    return digest.hexdigest()
