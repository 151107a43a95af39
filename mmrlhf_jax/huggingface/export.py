"""A model out, as a Hugging Face directory that transformers and vLLM load: a trained one, or a new one to start from."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.templates import IM_END
from mmrlhf_jax.huggingface.chat_templates import DEFAULT, read_chat_templates, write_chat_templates
from mmrlhf_jax.huggingface.generation_config import FILE as GENERATION
from mmrlhf_jax.huggingface.generation_config import end_tokens
from mmrlhf_jax.huggingface.hub import find_directory, local_directory
from mmrlhf_jax.huggingface.load import check_checkpoint, load_tokenizer
from mmrlhf_jax.huggingface.model_config import open_checkpoint
from mmrlhf_jax.huggingface.new_directory import new_directory, refuse_existing
from mmrlhf_jax.huggingface.peft_adapter import MergedTensors, base_of, is_adapter
from mmrlhf_jax.huggingface.tensors import StoredTensors, TensorPlan, write_tensors
from mmrlhf_jax.models.family import Checkpoint, Family, ModelConfig
from mmrlhf_jax.models.registry import family_of, find_family
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.models.weight_names import EMBEDDED, PROJECTED, Layout, Naming, Stored
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

SHARD_BYTES = 5_000_000_000
NESTED = ("text_config", "llm_config", "vision_config")

# What a run leaves as it found it. Everything else in the source (its card, other weights, optimizer states) stays there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


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

    Host memory holds one tensor at a time. `out` is a path, or what is `new_directory.reserved`; nothing is left there unless
    all of it was written. Returns how many numbers that is. Raises UserError where `out` exists and is not empty, and in a run
    of several processes.
    """
    source = local_directory(source)
    family = family_of(model.config)
    kinds = WrittenDtypes(StoredTensors(source, family.names.pieces), family, None if dtype is None else np.dtype(dtype))
    parameters = {plan.name: plan for plan in _model_plans(model, naming, kinds)}
    if model.config.text.tied and PROJECTED in kinds.names:  # tied, and stored all the same
        embedding = model.language.embedding.embedding.get_value()
        name = family.names.spell(PROJECTED, naming)
        parameters[name] = _from_device(name, embedding.shape, kinds(PROJECTED), Layout.SAME, embedding, None)
    return _export(source, out, model.config, kinds, parameters, naming, card, shard_bytes)


def export_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: Any = None,
    naming: Naming = "hf",
    card: Callable[[Family], str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """As `export_model` of the untouched model of `source`, file to file: no device takes part, memory holds one tensor.

    `card` makes the model card, of the family that the model is of. `source` may be a PEFT adapter: then it is merged into its
    base, whose directory gives everything else. What its updates lose by the dtype is said.
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
    kinds = WrittenDtypes(stored, family, None if dtype is None else np.dtype(dtype))
    parameters = {}
    for tensor, name in kinds.names.items():
        if family.names.parameter(tensor) is not None and not family.left_out(config, tensor.part, tensor.layer, naming):
            spelt = family.names.spell(tensor, naming)
            parameters[spelt] = _copied(stored, name, kinds(tensor), spelt)
    text = None if card is None else card(family)
    count = _export(source, out, config, kinds, parameters, naming, text, shard_bytes)
    rounded = {kinds(tensor) for tensor, name in kinds.names.items() if name in learnt and learnt[name] != kinds(tensor)}
    say_rounded(out, rounded, "the updates of the adapter", asked=dtype is not None)
    return count


def say_rounded(out: str | os.PathLike[str], dtypes: Collection[np.dtype], what: str, *, asked: bool) -> None:
    """What was learnt in float32 and is written in the given dtypes loses what is small beside a weight."""
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
        sizes = family.read(Checkpoint(config, {}, dict, "config", "config"))
        model = family.model()(sizes, rngs=nnx.Rngs(seed), param_dtype=dtype)
    with new_directory(out) as new:
        directory = new.files
        plans = [*_model_plans(model, "hf", lambda _: kind), *_wanted(family, sizes, lambda _: kind)]
        write_tensors(new.large, plans, SHARD_BYTES)
        _write_json(directory / "config.json", config)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(directory)
        _write_processors(directory, family.processors(sizes, tokenizer))
        _write_json(directory / GENERATION, _generation(tokenizer))


class WrittenDtypes:
    """The dtype in which a tensor is written: the one asked for, its own in the source, or that of the source's embedding."""

    def __init__(self, stored: StoredTensors, family: Family, asked: np.dtype | None):
        self.asked, self.stored, self.family = asked, stored, family
        found = {family.names.resolve(name): name for name in stored.shapes}
        self.names: dict[Stored, str] = {tensor: name for tensor, name in found.items() if tensor is not None}

    def __call__(self, tensor: Stored) -> np.dtype:
        name = self.names.get(tensor, self.names[EMBEDDED])
        return self.asked or self.stored.dtypes[name]


def _export(
    source: Path,
    out: str | os.PathLike[str],
    config: ModelConfig,
    kinds: WrittenDtypes,
    parameters: Mapping[str, TensorPlan],
    naming: Naming,
    card: str | None,
    shard_bytes: int,
) -> int:
    """Weights and everything around them. `parameters` are the model's tensors by their names in `naming`."""
    family, checkpoint = open_checkpoint(source)
    converted = family.naming(checkpoint.config) != naming
    plans = _plans(parameters, config, kinds, naming, converted)
    count = sum(math.prod(plan.shape) for plan in plans)
    family.check_export(config, naming, f"{source}", os.fspath(out))
    with new_directory(out) as place:
        tokenizer = _tokenizer(source)  # before the weights: what is wrong shall show at once
        directory = place.files
        write_tensors(place.large, plans, shard_bytes)
        new = _config(family, checkpoint, config, naming)
        _write_json(directory / "config.json", _with_dtype(new, _main_dtype(plans), naming, asked=kinds.asked is not None))
        _copy(source, directory, (*TOKENIZER_FILES, GENERATION, *family.processor_files))
        templates = read_chat_templates(source)
        if naming == "hf" and tokenizer is not None:
            if isinstance(tokenizer.chat_template, str):  # perhaps one that its family gave it
                templates = {**templates, DEFAULT: tokenizer.chat_template}
            elif not templates and family.default_chat_template() is not None:
                templates = {DEFAULT: family.default_chat_template()}
        if naming == "hf":
            _complete(source, directory, family, config, tokenizer, converted=converted)
        write_chat_templates(directory, templates)
        if card is not None:
            (directory / "README.md").write_text(card)
    return count


def _plans(
    parameters: Mapping[str, TensorPlan],
    config: ModelConfig,
    kinds: WrittenDtypes,
    naming: Naming,
    converted: bool,
) -> list[TensorPlan]:
    """What to write: the tensors of the source, in its own spelling where the naming stays, then those that it lacks."""
    names, rest, ordered = kinds.family.names, dict(parameters), []
    for tensor, name in kinds.names.items():
        spelt = names.spell(tensor, naming)
        plan = rest.pop(spelt, None)
        if names.parameter(tensor) is None:
            plan = _copied(kinds.stored, name, kinds(tensor), spelt)
        if plan is not None:
            ordered.append(dataclasses.replace(plan, name=spelt if converted else name))
    ordered += rest.values()
    if naming == "hf":
        stored = {names.spell(tensor, naming) for tensor in kinds.names}
        ordered += [plan for plan in _wanted(kinds.family, config, kinds) if plan.name not in stored]
    return ordered


def _wanted(family: Family, config: ModelConfig, dtype: Callable[[Stored], np.dtype]) -> Iterator[TensorPlan]:
    """The tensors that only transformers wants, one value for every feature of the tower."""
    for (part, rest), value in family.names.wanted.items():
        tensor = Stored(part, rest, None)
        yield _constant(family.names.spell(tensor, "hf"), (config.vision.hidden_size,), dtype(tensor), value)


def _model_plans(model: VisionLanguage, naming: Naming, dtype: Callable[[Stored], np.dtype]) -> Iterator[TensorPlan]:
    """Every parameter's tensors."""
    family = family_of(model.config)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        array = variable.get_value()
        tensors, layout = family.names.tensors(path, array.shape[0])
        for tensor in tensors:
            if not family.left_out(model.config, tensor.part, tensor.layer, naming):
                layer = tensor.layer
                shape = layout.stored_shape(array.shape if layer is None else array.shape[1:])
                yield _from_device(family.names.spell(tensor, naming), shape, dtype(tensor), layout, array, layer)


def _from_device(
    name: str, shape: tuple[int, ...], dtype: np.dtype, layout: Layout, array: jax.Array, layer: int | None
) -> TensorPlan:
    """A parameter's tensor, or that of one layer of it."""

    def read() -> np.ndarray:
        # A copy on the device: reading `array` itself would keep its host copy alive as long as the model.
        part = jnp.copy(array) if layer is None else array[layer]
        return layout.to_tensor(np.asarray(part)).astype(dtype)

    return TensorPlan(name, shape, dtype, read)


def _copied(stored: StoredTensors, name: str, dtype: np.dtype, spelt: str) -> TensorPlan:
    return TensorPlan(spelt, stored.shapes[name], dtype, lambda: stored.read(name).astype(dtype, copy=False))


def _constant(name: str, shape: tuple[int, ...], dtype: np.dtype, value: float) -> TensorPlan:
    return TensorPlan(name, shape, dtype, lambda: np.full(shape, value, dtype))


def _config(family: Family, checkpoint: Checkpoint, config: ModelConfig, naming: Naming) -> dict[str, Any]:
    """The source's config.json in the naming asked for, with what this model has changed."""
    new = family.convert_config(checkpoint, config, naming)
    if not config.text.tied:  # a source may say "tied" and store a projection of its own
        new["tie_word_embeddings"] = False
        for part in {"text_config", "llm_config"} & new.keys():
            new[part] = {**new[part], "tie_word_embeddings": False}
    if naming == "hf":
        new["architectures"] = [family.architecture]
    new.pop("reward_head", None)
    if config.reward_head is not None:
        new["reward_head"] = config.reward_head
    return new


def _main_dtype(plans: Sequence[TensorPlan]) -> np.dtype:
    """In which most of the model is written."""
    sizes: dict[np.dtype, int] = {}
    for plan in plans:
        sizes[plan.dtype] = sizes.get(plan.dtype, 0) + plan.nbytes
    return max(sizes, key=sizes.__getitem__)


def _with_dtype(config: Mapping[str, Any], dtype: np.dtype, naming: Naming, *, asked: bool) -> dict[str, Any]:
    """The one dtype under every name that a config has for it (transformers 5 reads `dtype`, older ones `torch_dtype`), in the
    parts' configs as well. Where it has none, it gets one only if a dtype was `asked` for."""
    new = {name: _with_dtype(value, dtype, naming, asked=False) if name in NESTED else value for name, value in config.items()}
    names = [name for name in ("dtype", "torch_dtype") if name in new]
    if asked and not names:
        names = ["dtype" if naming == "hf" else "torch_dtype"]
    return new | dict.fromkeys(names, dtype.name)


def _tokenizer(source: Path) -> PreTrainedTokenizerFast | None:
    """The source's tokenizer, if it has any. UserError for one that is not of its model's family."""
    if not any((source / name).exists() for name in TOKENIZER_FILES):
        logger.warning("%s: no tokenizer; the export has none either", source)
        return None
    return load_tokenizer(source)


def _complete(
    source: Path,
    directory: Path,
    family: Family,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerFast | None,
    *,
    converted: bool,
) -> None:
    """Write what a Hugging Face directory needs and the source's naming or its makers left out."""
    if tokenizer is not None:
        if converted:
            tokenizer.save_pretrained(directory)
        if not (directory / GENERATION).exists():
            _write_json(directory / GENERATION, _generation(tokenizer, end_tokens(source)))
    _write_processors(directory, family.processors(config, tokenizer), keep=not converted)


def _generation(tokenizer: PreTrainedTokenizerFast, ends: Sequence[int] = ()) -> dict[str, Any]:
    """With every token that ends a text: the tokenizer's, the `ends` that the source names, and ChatML's closing one."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    closing = tokenizer.get_vocab().get(IM_END)
    stops = [number for number in dict.fromkeys([ids["eos_token_id"], *ends, closing]) if number is not None]
    ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops or None
    return {name: value for name, value in ids.items() if value is not None}


def _write_processors(directory: Path, files: Mapping[str, Mapping[str, Any]], *, keep: bool = False) -> None:
    """With `keep`, files that are there already stay as they are."""
    for name, content in files.items():
        if not (keep and (directory / name).exists()):
            _write_json(directory / name, content)


def _copy(source: Path, directory: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(strict_json.dumps(value, indent=2, sort_keys=True) + "\n")
