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
from mmrlhf_jax.data.templates import CHAT_TEMPLATE, IM_END
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.huggingface.chat_templates import DEFAULT, read_chat_templates, write_chat_templates
from mmrlhf_jax.huggingface.generation_config import FILE as GENERATION
from mmrlhf_jax.huggingface.generation_config import end_tokens
from mmrlhf_jax.huggingface.hub import find_directory, local_directory
from mmrlhf_jax.huggingface.load import IMAGE_TOKEN, VIDEO_TOKEN, check_checkpoint, load_tokenizer
from mmrlhf_jax.huggingface.new_directory import new_directory, refuse_existing
from mmrlhf_jax.huggingface.peft_adapter import MergedTensors, base_of, is_adapter
from mmrlhf_jax.huggingface.tensors import StoredTensors, TensorPlan, write_tensors
from mmrlhf_jax.models.llava_onevision import original, weights
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig, config_from_hf
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

SHARD_BYTES = 5_000_000_000
NESTED = ("text_config", "vision_config")

# What a run leaves as it found it. Everything else in the source (its card, other weights, optimizer states) stays there.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
PROCESSOR_FILES = (
    GENERATION,
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)


def export_model(
    model: LlavaOnevision,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: Any = None,
    naming: weights.Naming = "hf",
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
    stored = StoredTensors(source)
    kinds = WrittenDtypes(stored, None if dtype is None else np.dtype(dtype))
    parameters = {plan.name: plan for plan in _model_plans(model, naming, kinds)}
    head = weights.Stored("vocabulary", "weight", None)
    if model.config.text.tied and head in kinds.names:  # tied, and stored all the same
        embedding = model.language.embedding.embedding.get_value()
        name = weights.spell(head, naming)
        parameters[name] = _from_device(name, embedding.shape, kinds(head), weights.Layout.SAME, embedding, None)
    return _export(source, out, model.config, kinds, parameters, naming, card, shard_bytes)


def export_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: Any = None,
    naming: weights.Naming = "hf",
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """As `export_model` of the untouched model of `source`, file to file: no device takes part, memory holds one tensor.

    `source` may be a PEFT adapter: then it is merged into its base, whose directory gives everything else. What its updates
    lose by the dtype is said.
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
    kinds = WrittenDtypes(stored, None if dtype is None else np.dtype(dtype))
    parameters = {}
    for tensor, name in kinds.names.items():
        if weights.parameter(tensor) is not None and not _left_out(tensor, config, naming):
            spelt = weights.spell(tensor, naming)
            parameters[spelt] = _copied(stored, name, kinds(tensor), spelt)
    count = _export(source, out, config, kinds, parameters, naming, card, shard_bytes)
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

    Pixels are normalised as SigLIP's (mean and deviation 0.5) and pinpoints are the config's. No torch is needed, here or
    to load it. Raises UserError where `out` exists and is not empty, or the config is no LLaVA-OneVision model.
    """
    refuse_existing(out)
    config = {**config, "model_type": "llava_onevision", "architectures": ["LlavaOnevisionForConditionalGeneration"]}
    config |= {"dtype": np.dtype(dtype).name, "vision_config": {**config["vision_config"], "vision_use_head": False}}
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        model = LlavaOnevision(config_from_hf(config, {}, "config"), rngs=nnx.Rngs(seed), param_dtype=dtype)
    with new_directory(out) as new:
        directory = new.files
        width, kind = (model.config.vision.hidden_size,), np.dtype(dtype)
        plans = list(_model_plans(model, "hf", lambda _: kind))
        for (part, tail), value in weights.WANTED_BY_TRANSFORMERS.items():
            plans.append(_constant(weights.spell(weights.Stored(part, tail, None), "hf"), width, kind, value))
        write_tensors(new.large, plans, SHARD_BYTES)
        _write_json(directory / "config.json", config)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(directory)
        _write_processors(directory, model.config)
        _write_json(directory / GENERATION, _generation(tokenizer))


class WrittenDtypes:
    """The dtype in which a tensor is written: the one asked for, its own in the source, or that of the source's embedding."""

    def __init__(self, stored: StoredTensors, asked: np.dtype | None):
        self.asked, self.stored = asked, stored
        found = {weights.resolve(name): name for name in stored.shapes}
        self.names: dict[weights.Stored, str] = {tensor: name for tensor, name in found.items() if tensor is not None}

    def __call__(self, tensor: weights.Stored) -> np.dtype:
        name = self.names.get(tensor, self.names[weights.Stored("language", "embed_tokens.weight", None)])
        return self.asked or self.stored.dtypes[name]


def _export(
    source: Path,
    out: str | os.PathLike[str],
    config: LlavaOnevisionConfig,
    kinds: WrittenDtypes,
    parameters: Mapping[str, TensorPlan],
    naming: weights.Naming,
    card: str | None,
    shard_bytes: int,
) -> int:
    """Weights and everything around them. `parameters` are the model's tensors by their names in `naming`."""
    raw = read_json_object(source / "config.json")
    plans = _plans(parameters, config, kinds, naming, original.is_original(raw))
    count = sum(math.prod(plan.shape) for plan in plans)
    if naming == "hf" and max(config.image_token, config.video_token) >= config.text.vocab_size:
        raise UserError(
            f"{source}: the embedding's {config.text.vocab_size} rows end before the image token ({config.image_token}) and"
            f" the video token ({config.video_token}), which transformers looks up; resize it first, or use --naming original"
        )
    if naming == "original" and (*config.vision.image_mean, *config.vision.image_std) != (0.5,) * 6:
        logger.warning("%s: the original code normalises pixels with 0.5, unlike this model; it runs right only here", out)
    with new_directory(out) as place:
        tokenizer = _tokenizer(source)  # before the weights: what is wrong shall show at once
        directory = place.files
        write_tensors(place.large, plans, shard_bytes)
        new = _config(raw, kinds.stored, config, naming)
        _write_json(directory / "config.json", _with_dtype(new, _main_dtype(plans), naming, asked=kinds.asked is not None))
        _copy(source, directory, (*TOKENIZER_FILES, *PROCESSOR_FILES))
        templates = read_chat_templates(source)
        if naming == "hf":
            if tokenizer is not None and not templates:
                templates = {DEFAULT: CHAT_TEMPLATE}
            _complete(source, directory, config, tokenizer, converted=original.is_original(raw))
        write_chat_templates(directory, templates)
        if card is not None:
            (directory / "README.md").write_text(card)
    return count


def _plans(
    parameters: Mapping[str, TensorPlan],
    config: LlavaOnevisionConfig,
    kinds: WrittenDtypes,
    naming: weights.Naming,
    from_original: bool,
) -> list[TensorPlan]:
    """What to write: the tensors of the source, in its own spelling where the naming stays, then those that it lacks."""
    same_naming = (naming == "original") == from_original
    rest, ordered = dict(parameters), []
    for tensor, name in kinds.names.items():
        spelt = weights.spell(tensor, naming)
        plan = rest.pop(spelt, None)
        if weights.parameter(tensor) is None:
            plan = _copied(kinds.stored, name, kinds(tensor), spelt)
        if plan is not None:
            ordered.append(dataclasses.replace(plan, name=name if same_naming else spelt))
    ordered += rest.values()
    if naming == "hf":
        for (part, tail), value in weights.WANTED_BY_TRANSFORMERS.items():
            tensor = weights.Stored(part, tail, None)
            if tensor not in kinds.names:
                shape, kind = (config.vision.hidden_size,), kinds(tensor)
                ordered.append(_constant(weights.spell(tensor, naming), shape, kind, value))
    return ordered


def _left_out(tensor: weights.Stored, config: LlavaOnevisionConfig, naming: weights.Naming) -> bool:
    """The original code runs every layer that a tower has; Hugging Face's config may stop before the last."""
    behind = tensor.part == "vision" and tensor.layer is not None and tensor.layer >= config.vision.feature_layers
    return naming == "original" and behind


def _model_plans(
    model: LlavaOnevision, naming: weights.Naming, dtype: Callable[[weights.Stored], np.dtype]
) -> Iterator[TensorPlan]:
    """Every parameter's tensors."""
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        array = variable.get_value()
        tensors, layout = weights.tensors(path, array.shape[0])
        for tensor in tensors:
            if not _left_out(tensor, model.config, naming):
                layer = tensor.layer
                shape = layout.stored_shape(array.shape if layer is None else array.shape[1:])
                yield _from_device(weights.spell(tensor, naming), shape, dtype(tensor), layout, array, layer)


def _from_device(
    name: str, shape: tuple[int, ...], dtype: np.dtype, layout: weights.Layout, array: jax.Array, layer: int | None
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


def _config(
    raw: Mapping[str, Any],
    stored: StoredTensors,
    config: LlavaOnevisionConfig,
    naming: weights.Naming,
) -> dict[str, Any]:
    """The source's config.json in the naming asked for, with what this model has changed."""
    if original.is_original(raw):
        new = dict(raw) if naming == "original" else original.to_hf(raw, stored.shapes, str(stored.directory))
    else:
        new = dict(raw) if naming == "hf" else original.from_hf(raw, config)
    if not config.text.tied:  # a source may say "tied" and store a projection of its own
        new["tie_word_embeddings"] = False
        if "text_config" in new:
            new["text_config"] = {**new["text_config"], "tie_word_embeddings": False}
    if naming == "hf":
        new["architectures"] = ["LlavaOnevisionForConditionalGeneration"]
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


def _with_dtype(config: Mapping[str, Any], dtype: np.dtype, naming: weights.Naming, *, asked: bool) -> dict[str, Any]:
    """The one dtype under every name that a config has for it (transformers 5 reads `dtype`, older ones `torch_dtype`), in the
    parts' configs as well. Where it has none, it gets one only if a dtype was `asked` for."""
    new = {name: _with_dtype(value, dtype, naming, asked=False) if name in NESTED else value for name, value in config.items()}
    names = [name for name in ("dtype", "torch_dtype") if name in new]
    if asked and not names:
        names = ["dtype" if naming == "hf" else "torch_dtype"]
    return new | dict.fromkeys(names, dtype.name)


def _tokenizer(source: Path) -> PreTrainedTokenizerFast | None:
    """The source's tokenizer, if it has any. UserError for one that is not a LLaVA-OneVision model's."""
    if not any((source / name).exists() for name in TOKENIZER_FILES):
        logger.warning("%s: no tokenizer; the export has none either", source)
        return None
    return load_tokenizer(source)


def _complete(
    source: Path, directory: Path, config: LlavaOnevisionConfig, tokenizer: PreTrainedTokenizerFast | None, converted: bool
) -> None:
    """Write what a Hugging Face directory needs and the source's naming or its makers left out."""
    if tokenizer is not None:
        if converted:
            tokenizer.save_pretrained(directory)
        if not (directory / GENERATION).exists():
            _write_json(directory / GENERATION, _generation(tokenizer, end_tokens(source)))
    _write_processors(directory, config, keep=not converted)


def _generation(tokenizer: PreTrainedTokenizerFast, ends: Sequence[int] = ()) -> dict[str, Any]:
    """With every token that ends a text: the tokenizer's, the `ends` that the source names, and ChatML's closing one."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    closing = tokenizer.get_vocab().get(IM_END)
    stops = [number for number in dict.fromkeys([ids["eos_token_id"], *ends, closing]) if number is not None]
    ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops or None
    return {name: value for name, value in ids.items() if value is not None}


def _write_processors(directory: Path, config: LlavaOnevisionConfig, *, keep: bool = False) -> None:
    """Image, video and joint processor configs under the names that transformers and vLLM look for.

    With `keep`, files that are there already stay as they are.
    """
    vision, geometry = config.vision, config.geometry
    whose = {"processor_class": "LlavaOnevisionProcessor"}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "resample": 3,  # bicubic
        "rescale_factor": vision.rescale,
        "size": {"height": vision.image_size, "width": vision.image_size},
    }
    image = {"image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True}
    image["image_grid_pinpoints"] = [list(pinpoint) for pinpoint in geometry.pinpoints]
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor"}
    joint = {
        "num_image_tokens": vision.patches,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": f"anyres_max_{geometry.max_patches}" if geometry.max_patches else "anyres",
        "image_token": IMAGE_TOKEN,
        "video_token": VIDEO_TOKEN,
    }
    files = {
        "preprocessor_config.json": whose | image | pixels,
        "video_preprocessor_config.json": whose | video | pixels,
        "processor_config.json": whose | joint,
    }
    for name, content in files.items():
        if not (keep and (directory / name).exists()):
            _write_json(directory / name, content)


def _copy(source: Path, directory: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(strict_json.dumps(value, indent=2, sort_keys=True) + "\n")
