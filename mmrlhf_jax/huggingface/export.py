"""A model out, as a Hugging Face directory that transformers and vLLM load: a trained one, or a new one to start from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrlhf_jax.huggingface.checkpoint import check_checkpoint
from mmrlhf_jax.huggingface.hub import find_directory, local_directory
from mmrlhf_jax.huggingface.model_config import open_checkpoint
from mmrlhf_jax.huggingface.model_files import (
    exported_config,
    find_tokenizer,
    with_dtype,
    write_json,
    write_model_files,
    write_new_files,
)
from mmrlhf_jax.huggingface.new_directory import new_directory, refuse_existing
from mmrlhf_jax.huggingface.peft_adapter import MergedTensors, base_of, is_adapter
from mmrlhf_jax.huggingface.tensor_plans import (
    WrittenDtypes,
    main_dtype,
    model_plans,
    ordered_plans,
    parameter_plans,
    stored_plans,
    wanted_plans,
)
from mmrlhf_jax.huggingface.tensors import StoredTensors, TensorPlan, write_tensors
from mmrlhf_jax.models.family import Checkpoint, Family, ModelConfig
from mmrlhf_jax.models.registry import family_of, find_family
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.models.weight_names import Naming
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD_BYTES = 5_000_000_000


def export_model(
    model: VisionLanguage,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: Any = None,
    naming: Naming = "hf",
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write `model` to the new directory `out`, complete: weights, config, tokenizer, processors and model card.

    `source` is the directory that the run started from. Where its naming is kept, every tensor keeps its own name and
    (with `dtype` None) its own stored dtype, and tensors that the model does not use are copied: of an untrained model
    every tensor comes out byte for byte. A reward head is written as `rm_head.*` and named in config.json (`reward_head`).

    Host memory holds one tensor at a time. `out` is a path, or a place that `new_directory.reserved` holds; if writing fails,
    nothing is left there. Returns how many parameters were written. Raises UserError if `out` exists and is not empty, and in a
    run of several processes.
    """
    source = local_directory(source)
    family = family_of(model.config)
    family.check_naming(naming)
    dtypes = WrittenDtypes(StoredTensors(source, family.names.pieces), family, None if dtype is None else np.dtype(dtype))
    parameters = parameter_plans(model, naming, dtypes)
    return _export(source, out, model.config, dtypes, parameters, naming, card, shard_bytes)


def export_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: Any = None,
    naming: Naming = "hf",
    card: Callable[[Family], str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Like `export_model` of the unchanged model of `source`, but from file to file: no device is used, and host memory holds
    one tensor at a time.

    `card` makes the model card, of the family that the model is of. `source` may be a PEFT adapter: then it is merged into its
    base, whose directory gives everything else. A message says if the dtype that is written rounds its updates.
    """
    directory = find_directory(source)
    learnt: Mapping[str, np.dtype] = {}
    if is_adapter(directory):
        source = local_directory(base_of(directory))
        config, _ = check_checkpoint(source)
        stored = MergedTensors(source, directory, tied=config.text.tied)
        learnt = stored.learnt
    else:
        source = local_directory(source)
        config, stored = check_checkpoint(source)
    family = family_of(config)
    family.check_naming(naming)
    dtypes = WrittenDtypes(stored, family, None if dtype is None else np.dtype(dtype))
    text = None if card is None else card(family)
    count = _export(source, out, config, dtypes, stored_plans(config, dtypes, naming), naming, text, shard_bytes)
    rounded = {dtypes(tensor) for tensor, name in dtypes.names.items() if name in learnt and learnt[name] != dtypes(tensor)}
    say_rounded(out, rounded, "the updates of the adapter", asked=dtype is not None)
    return count


def say_rounded(out: str | os.PathLike[str], dtypes: Collection[np.dtype], what: str, *, asked: bool) -> None:
    """Print that updates learnt in float32 are rounded, if `dtypes`, in which they are written, are narrower than float32.

    `what` names the updates in the message; `asked` says whether the user asked for the dtype.
    """
    narrow = sorted(dtype.name for dtype in dtypes if dtype.itemsize < 4)
    if narrow:
        why = "" if asked else ", as the base model is stored"
        say(
            f"{out}: {what} are rounded to {' and '.join(narrow)}{why}. Small updates are lost by this rounding, perhaps most"
            " of what a short run learnt; --dtype float32 keeps them"
        )


def new_checkpoint(
    out: str | os.PathLike[str],
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    *,
    chat_template: str | None = None,
    dtype: Any = jnp.float32,
    seed: int = 0,
) -> None:
    """Write a randomly initialised model of a Hugging Face `config` to the new directory `out`, ready to be loaded.

    Pixels are normalised as the family's config has it without an image processor's file. No torch is needed, here or to load
    it. Raises UserError where `out` exists and is not empty, or the config is of no family.
    """
    refuse_existing(out)
    family, kind = find_family(config, "config"), np.dtype(dtype)
    config = family.new_config({**config, "architectures": [family.architecture], "dtype": kind.name})
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        sizes = family.read(Checkpoint(config, lambda name: None, dict, lambda: None, "config", "config"))
        model = family.model()(sizes, rngs=nnx.Rngs(seed), param_dtype=dtype)
    with new_directory(out) as new:
        directory = new.files
        plans = [*model_plans(model, "hf", lambda _: kind), *wanted_plans(family, sizes, lambda _: kind)]
        write_tensors(new.large, plans, SHARD_BYTES)
        write_json(directory / "config.json", config)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        write_new_files(directory, family, sizes, tokenizer)


def _export(
    source: Path,
    out: str | os.PathLike[str],
    config: ModelConfig,
    dtypes: WrittenDtypes,
    parameters: Mapping[str, TensorPlan],
    naming: Naming,
    card: str | None,
    shard_bytes: int,
) -> int:
    """Write weights and all files beside them. `parameters` are the model's tensors by their names in `naming`."""
    family, checkpoint = open_checkpoint(source)
    converted = family.naming(checkpoint.config) != naming
    plans = ordered_plans(parameters, config, dtypes, naming, converted)
    # Config and tokenizer are made before the weights are written, so that their errors come early.
    new = exported_config(family, checkpoint, config, naming)
    family.check_export(checkpoint, config, naming, os.fspath(out))
    with new_directory(out) as place:
        tokenizer = find_tokenizer(source)
        write_tensors(place.large, plans, shard_bytes)
        asked = dtypes.asked is not None
        write_json(place.files / "config.json", with_dtype(new, main_dtype(plans), naming, asked=asked))
        write_model_files(source, place.files, family, config, tokenizer, naming, converted=converted)
        if card is not None:
            (place.files / "README.md").write_text(card)
    return sum(math.prod(plan.shape) for plan in plans)
