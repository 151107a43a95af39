"""Writes adapters as a PEFT directory, `adapter_config.json` and `adapter_model.safetensors`, for the model they belong to.

Reference: PEFT `utils/save_and_load.py`, `tuners/lora/config.py`; modules are named as in transformers 5.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

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
from mmrlhf_jax.models.weight_names import Stored, WeightNames, piece_name, whole_name

LAYER = "LAYER"  # placeholder for a layer's number while a regular expression is made


def export_adapter(
    model: VisionLanguage, base: str, out: str | os.PathLike[str], *, rank: int, alpha: float, card: str | None = None
) -> None:
    """Write a model's adapters to the new directory `out`. `base` is the model that they belong to.

    Raises UserError where `out` exists and is not empty, in a run of several processes, and for adapters of a reward head,
    which no model of transformers has.
    """
    updates: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}  # module -> number of its piece -> A [r, I], B [O, r]
    targets: dict[str, int] = {}  # regular expression of modules -> pieces of their weights
    names = family_of(model.config).names
    for path, layer in adapted_layers(model):
        stored, _ = names.tensors((*path, "kernel"), layer.kernel.shape[0])
        if names.parts[stored[0].part].module is None:
            raise UserError(f"adapters of {'.'.join(path)} fit no transformers model; export the merged model (no --adapter)")
        a, b = np.asarray(layer.lora_a.get_value()), np.asarray(layer.lora_b.get_value())
        for i, tensor in enumerate(stored):
            module, number, pieces = whole_name(_module(names, tensor, str(tensor.layer)))
            targets[re.escape(whole_name(_module(names, tensor, LAYER))[0]).replace(LAYER, r"\d+")] = pieces
            stacked = tensor.layer is not None
            updates.setdefault(module, {})[number] = ((a[i] if stacked else a).T, (b[i] if stacked else b).T)
    tensors: dict[str, np.ndarray] = {}
    for module, pieces in updates.items():
        a, b = _joined(pieces, names.pieces(f"{module}.weight"))
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(b)
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
    # Patterns match the end of a module's name, behind a dot. The quotient of alpha and rank is the same for all.
    joint = {target.partition(r"\.")[2]: pieces for target, pieces in targets.items() if pieces > 1}
    if joint:
        settings["rank_pattern"] = {target: pieces * rank for target, pieces in joint.items()}
        settings["alpha_pattern"] = {target: pieces * alpha for target, pieces in joint.items()}
    with new_directory(out) as place:
        directory = place.files
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        (directory / "adapter_config.json").write_text(strict_json.dumps(settings, indent=2, sort_keys=True) + "\n")
        if card is not None:
            (directory / "README.md").write_text(card)


def _joined(pieces: Mapping[int, tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) of a module of `count` equal pieces along the outputs, of which these have adapters: the ranks of all pieces one
    behind the other, each of which changes its own outputs only."""
    if count == 1:
        return pieces[0]
    (rank, inputs), (outputs, _) = (side.shape for side in next(iter(pieces.values())))
    a = np.zeros((count * rank, inputs), next(iter(pieces.values()))[0].dtype)
    b = np.zeros((count * outputs, count * rank), a.dtype)
    for number, (own_a, own_b) in pieces.items():
        ranks = slice(number * rank, (number + 1) * rank)
        a[ranks], b[number * outputs : (number + 1) * outputs, ranks] = own_a, own_b
    return a, b


def _module(names: WeightNames, tensor: Stored, layer: str) -> str:
    """The name, in transformers' model, of the module whose weight this tensor is; a `piece_name` if it is a piece of it."""
    name, number, pieces = whole_name(names.parts[tensor.part].module + tensor.rest.replace("{}", layer))
    name = name.removesuffix("weight").removesuffix(".")
    return name if pieces == 1 else piece_name(name, number, pieces)
