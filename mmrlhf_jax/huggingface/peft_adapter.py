"""A PEFT LoRA adapter in: the tensors of its base with the adapter merged, one at a time as they are read.

Reference: PEFT `tuners/lora/config.py` (what the settings mean), `utils/save_and_load.py` (how tensors are named). What a
merged model cannot express, or what changes the base itself, is refused by its setting's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.huggingface.hub import ADAPTER, find_directory
from mmrlhf_jax.huggingface.tensors import StoredTensors, check_file
from mmrlhf_jax.huggingface.weight_files import some
from mmrlhf_jax.models.llava_onevision import weights

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save|default)(?=\.)")  # modules that PEFT puts around a layer

# Settings under which the update is not alpha / r * B A, or the base is not the base any more, unless they have this value.
PLAIN = {
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "layer_replication": (),
    "target_parameters": (),
    "trainable_token_indices": (),
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "megatron_config": (),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # PiSSA, OLoRA, CorDA, EVA and LoftQ move the base
}


class _Update(NamedTuple):
    scale: float
    a: np.ndarray  # [rank, inputs]
    b: np.ndarray  # [outputs, rank]


def is_adapter(path: str) -> bool:
    return (Path(path) / ADAPTER).exists() and not (Path(path) / "config.json").exists()


def base_of(adapter: Path) -> Path:
    """The directory of the model that an adapter belongs to. UserError where it names none that is here or on the hub."""
    base = read_json_object(adapter / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{adapter / ADAPTER}: names no base_model_name_or_path; add the directory or hub id of its base")
    try:
        return find_directory(base)
    except UserError as error:
        raise UserError(f"{adapter / ADAPTER}: base_model_name_or_path: {error}") from None


class MergedTensors(StoredTensors):
    """The tensors of `base`, under their names and of their dtypes, but read in float32 with the adapter's updates added, and
    with the modules in place that it stores as a whole.

    Raises UserError for anything in the adapter that has no place in the base.
    """

    def __init__(self, base: Path, adapter: Path):
        super().__init__(base)
        settings = read_json_object(adapter / ADAPTER)
        _check(settings, adapter)
        self._updates: dict[str, _Update] = {}
        self._whole: dict[str, np.ndarray] = {}
        names = {weights.resolve(name): name for name in self.shapes}
        sides: dict[str, dict[str, np.ndarray]] = {}
        for key, tensor in _load(adapter).items():
            spelt = WRAPPERS.sub("", key.removeprefix(PREFIX))
            match = LORA.fullmatch(spelt)
            name = names.get(weights.resolve(f"{match['module']}.weight" if match else spelt))
            if name is None or not key.startswith(PREFIX):
                raise UserError(f"{adapter / WEIGHTS}: {key} belongs to no tensor of the base {base}")
            if match:
                sides.setdefault(match["module"], {"name": name})[match["side"]] = tensor.astype(np.float32)
            elif tensor.shape != self.shapes[name]:
                raise UserError(f"{adapter / WEIGHTS}: {key} is {tensor.shape}, the base has {self.shapes[name]}")
            else:
                self._whole[name] = tensor
        for module, found in sides.items():
            self._add_update(module, found, settings, adapter)
        if not self._updates and not self._whole:
            raise UserError(f"{adapter / WEIGHTS}: holds no tensors")

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        if name in self._whole:
            return self._whole[name][index or ...]
        stored = super().read(name, index)
        if name not in self._updates:
            return stored
        scale, a, b = self._updates[name]
        rows, columns = index or (slice(None), slice(None))
        return stored.astype(np.float32) + np.float32(scale) * (b[rows] @ a[:, columns])

    def _add_update(self, module: str, found: dict[str, Any], settings: Mapping[str, Any], adapter: Path) -> None:
        name, a, b = found["name"], found.get("A"), found.get("B")
        fits = a is not None and b is not None and a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        if not fits or (b.shape[0], a.shape[1]) != self.shapes[name]:
            shapes = [None if side is None else side.shape for side in (a, b)]
            raise UserError(f"{adapter / WEIGHTS}: A and B of {module} are {shapes}, for a weight of {self.shapes[name]}")
        alpha = next(
            (value for key, value in (settings.get("alpha_pattern") or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module)),
            settings.get("lora_alpha"),
        )
        rank = a.shape[0]
        self._updates[name] = _Update(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank), a, b)


def _check(settings: Mapping[str, Any], adapter: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{adapter / ADAPTER}: peft_type is {settings.get('peft_type')!r}; only LORA can be merged into a model"
        )
    for key, allowed in PLAIN.items():
        if settings.get(key) not in (None, *allowed) and settings[key] not in ([], {}):
            raise UserError(f"{adapter / ADAPTER}: {key} is {settings[key]!r}, which is not supported; merge it with PEFT")
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"{adapter / ADAPTER}: lora_alpha is {alpha!r}, which is no number")


def _load(adapter: Path) -> dict[str, np.ndarray]:
    if not (adapter / WEIGHTS).exists():
        others = sorted(path.name for path in adapter.glob("adapter_model*"))
        raise UserError(f"{adapter}: no {WEIGHTS}{f' (there is {some(others)}; save it as safetensors)' if others else ''}")
    check_file(adapter / WEIGHTS)
    return load_file(adapter / WEIGHTS)
