"""Writes adapters as a PEFT directory, `adapter_config.json` and `adapter_model.safetensors`, for the model they belong to.

Reference: PEFT `utils/save_and_load.py`, `tuners/lora/config.py`; modules are named as in transformers 5.
"""

from __future__ import annotations

import os
import re

import numpy as np
from safetensors.numpy import save_file

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.huggingface.new_directory import new_directory
from mmrlhf_jax.huggingface.tensors import all_finite
from mmrlhf_jax.huggingface.weight_files import some
from mmrlhf_jax.models.lora import adapted_layers
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.models.weight_names import Stored, WeightNames

LAYER = "LAYER"  # placeholder for a layer's number while a regular expression is made


def export_adapter(
    model: VisionLanguage, base: str, out: str | os.PathLike[str], *, rank: int, alpha: float, card: str | None = None
) -> None:
    """Write a model's adapters to the new directory `out`. `base` is the model that they belong to.

    Raises UserError where `out` exists and is not empty, in a run of several processes, and for adapters of a reward head,
    which no model of transformers has.
    """
    tensors: dict[str, np.ndarray] = {}
    targets, names = set(), family_of(model.config).names
    for path, layer in adapted_layers(model):
        stored, _ = names.tensors((*path, "kernel"), layer.kernel.shape[0])
        if names.parts[stored[0].part].module is None:
            raise UserError(f"adapters of {'.'.join(path)} fit no transformers model; export the merged model (no --adapter)")
        a, b = np.asarray(layer.lora_a.get_value()), np.asarray(layer.lora_b.get_value())
        for i, tensor in enumerate(stored):
            module = _module(names, tensor, str(tensor.layer))
            targets.add(re.escape(_module(names, tensor, LAYER)).replace(LAYER, r"\d+"))
            stacked = tensor.layer is not None
            tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray((a[i] if stacked else a).T)
            tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray((b[i] if stacked else b).T)
    spoilt = sorted(name for name, tensor in tensors.items() if not all_finite(tensor))
    if spoilt:
        raise UserError(f"{some(spoilt)} hold NaN or infinity: such adapters are not written")
    if not tensors:
        raise UserError("this model has no adapters; export it without --adapter")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": "|".join(sorted(targets)),  # PEFT matches a string as one regular expression on whole names
    }
    with new_directory(out) as place:
        directory = place.files
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        (directory / "adapter_config.json").write_text(strict_json.dumps(settings, indent=2, sort_keys=True) + "\n")
        if card is not None:
            (directory / "README.md").write_text(card)


def _module(names: WeightNames, tensor: Stored, layer: str) -> str:
    """The name, in transformers' model, of the module whose weight this tensor is."""
    name = names.parts[tensor.part].module + tensor.rest.replace("{}", layer)
    return name.removesuffix("weight").removesuffix(".")
