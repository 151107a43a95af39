"""Reads a PEFT LoRA adapter: the tensors of its base with the adapter merged, one at a time as they are read.

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

from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.finite import number
from mmrlhf_jax.huggingface.hub import ADAPTER, find_directory
from mmrlhf_jax.huggingface.model_config import open_checkpoint
from mmrlhf_jax.huggingface.tensors import DTYPES, StoredTensors, all_finite, check_file
from mmrlhf_jax.huggingface.weight_files import some
from mmrlhf_jax.models.weight_names import EMBEDDED, PROJECTED, Stored, WeightNames, piece_name

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save|default)(?=\.)")  # modules that PEFT puts around a layer

# Settings and their supported values. With another value the update would not be alpha / r * B A, or would apply to other
# weights than the base's.
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
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),  # PiSSA, OLoRA, CorDA, EVA and LoftQ change base weights
}


class _Stored(NamedTuple):
    key: str
    module: str
    value: np.ndarray


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

    `tied` says whether the base's vocabulary projection is its token embedding. Raises UserError for anything in the adapter
    that has no place in the base.
    """

    def __init__(self, base: Path, adapter: Path, *, tied: bool):
        names = open_checkpoint(base)[0].names
        super().__init__(base, names.pieces)
        settings = read_json_object(adapter / ADAPTER)
        _check(settings, adapter)
        self._updates: dict[str, _Update] = {}
        self._whole: dict[str, np.ndarray] = {}
        found = _by_tensor(adapter, names, {names.resolve(name): name for name in self.shapes}, base)
        if not found:
            raise UserError(f"{adapter / WEIGHTS}: holds no tensors")
        for name, kinds in found.items():
            if tied and names.resolve(name) in (EMBEDDED, PROJECTED):
                raise UserError(
                    f"{adapter / WEIGHTS}: {next(iter(kinds.values())).key} changes one of two that are the same in the base"
                    f" {base} (tie_word_embeddings: token embedding and vocabulary projection); merge it with PEFT"
                )
            if "whole" in kinds:
                self._add_whole(name, kinds["whole"], adapter)
            else:
                self._add_update(name, kinds, settings, adapter)

    @property
    def learnt(self) -> dict[str, np.dtype]:
        """The dtypes in which the adapter holds the tensors that it changes: float32 for updates, and the stored dtype for
        modules that it stores as a whole."""
        return dict.fromkeys(self._updates, np.dtype(np.float32)) | {name: value.dtype for name, value in self._whole.items()}

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        if name in self._whole:
            return self._whole[name][index or ...]
        stored = super().read(name, index)
        if name not in self._updates:
            return stored
        scale, a, b = self._updates[name]
        rows, columns = index or (slice(None), slice(None))
        return stored.astype(np.float32) + np.float32(scale) * (b[rows] @ a[:, columns])

    def _add_whole(self, name: str, stored: _Stored, adapter: Path) -> None:
        if stored.value.shape != self.shapes[name]:
            raise UserError(f"{adapter / WEIGHTS}: {stored.key} is {stored.value.shape}, the base has {self.shapes[name]}")
        self._whole[name] = stored.value

    def _add_update(self, name: str, kinds: Mapping[str, _Stored], settings: Mapping[str, Any], adapter: Path) -> None:
        module = next(iter(kinds.values())).module
        a, b = (kinds[side].value.astype(np.float32) if side in kinds else None for side in "AB")
        fits = a is not None and b is not None and a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1] > 0
        if not fits or (b.shape[0], a.shape[1]) != self.shapes[name]:
            shapes = [None if side is None else side.shape for side in (a, b)]
            raise UserError(f"{adapter / WEIGHTS}: A and B of {module} are {shapes}, for a weight of {self.shapes[name]}")
        alpha = next(
            (value for key, value in (settings.get("alpha_pattern") or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module)),
            settings.get("lora_alpha"),
        )
        rank = a.shape[0]
        self._updates[name] = _Update(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank), a, b)


def _by_tensor(
    adapter: Path, names: WeightNames, tensors: Mapping[Stored | None, str], base: Path
) -> dict[str, dict[str, _Stored]]:
    """What an adapter stores for each tensor of its base (`tensors`): "A" and "B" of an update, or "whole".

    UserError for a key that belongs to no tensor, for two keys that change the same tensor (in different spellings, for
    example), and for values that are not finite.
    """
    found: dict[str, dict[str, _Stored]] = {}
    for key, value in _load(adapter).items():
        where = f"{adapter / WEIGHTS}: {key}"
        spelt = WRAPPERS.sub("", key.removeprefix(PREFIX))
        match = LORA.fullmatch(spelt)
        changed = f"{match['module']}.weight" if match else spelt
        count = names.pieces(changed)
        each = [changed] if count == 1 else [piece_name(changed, number, count) for number in range(count)]
        targets = [tensors.get(names.resolve(one)) for one in each]
        if None in targets or not key.startswith(PREFIX):
            raise UserError(f"{where} belongs to no tensor of the base {base}")
        if value.dtype not in DTYPES.values():
            raise UserError(f"{where} is {value.dtype}; weights must be one of {', '.join(DTYPES)}")
        if not all_finite(value):
            raise UserError(f"{where} holds NaN or infinity; such an adapter cannot be merged")
        kind = match["side"] if match else "whole"
        if kind != "A" and value.shape[:1] and value.shape[0] % count:
            raise UserError(f"{where} is {value.shape}; the base's module has {count} equal pieces")
        values = [value] * count if kind == "A" or not value.shape else np.split(value, count)
        for name, part in zip(targets, values, strict=True):
            kinds = found.setdefault(name, {})
            rivals = [stored.key for other, stored in kinds.items() if other == kind or "whole" in (other, kind)]
            if rivals:
                raise UserError(f"{where} and {rivals[0]} both say what becomes of {name}; keep one of them")
            kinds[kind] = _Stored(key, match["module"] if match else spelt, part)
    return found


def _check(settings: Mapping[str, Any], adapter: Path) -> None:
    where = adapter / ADAPTER
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type is {settings.get('peft_type')!r}; only LORA can be merged into a model")
    for key, allowed in PLAIN.items():
        if settings.get(key) not in (None, *allowed) and settings[key] not in ([], {}):
            raise UserError(f"{where}: {key} is {settings[key]!r}, which is not supported; merge it with PEFT")
    number(settings.get("lora_alpha"), f"{where}: lora_alpha")
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{where}: alpha_pattern must be an object of names and numbers, found {shown(patterns)}")
    for pattern, alpha in patterns.items():
        number(alpha, f"{where}: alpha_pattern {pattern!r}")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: alpha_pattern {pattern!r} is no regular expression ({error})") from None


def _load(adapter: Path) -> dict[str, np.ndarray]:
    if not (adapter / WEIGHTS).exists():
        others = sorted(path.name for path in adapter.glob("adapter_model*"))
        raise UserError(f"{adapter}: no {WEIGHTS}{f' (there is {some(others)}; save it as safetensors)' if others else ''}")
    check_file(adapter / WEIGHTS)
    return load_file(adapter / WEIGHTS)
