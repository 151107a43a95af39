"""The files of an export beside its weights: config.json, tokenizer, chat templates, generation config, processors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.templates import IM_END
from mmrlhf_jax.huggingface.chat_templates import DEFAULT, read_chat_templates, write_chat_templates
from mmrlhf_jax.huggingface.generation_config import FILE as GENERATION
from mmrlhf_jax.huggingface.generation_config import end_tokens
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.family import Checkpoint, Family, ModelConfig
from mmrlhf_jax.models.weight_names import Naming

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# Copied as they are. Everything else in the source (its card, other weights, optimizer states) is left out.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def find_tokenizer(source: Path) -> PreTrainedTokenizerFast | None:
    """The source's tokenizer, if it has any. UserError for one that is not of its model's family."""
    if not any((source / name).exists() for name in TOKENIZER_FILES):
        logger.warning("%s: no tokenizer; the export has none either", source)
        return None
    return load_tokenizer(source)


def exported_config(family: Family, checkpoint: Checkpoint, config: ModelConfig, naming: Naming) -> dict[str, Any]:
    """The source's config.json converted to `naming`, with the tying and reward head of this model."""
    new = family.convert_config(checkpoint, config, naming)
    if not config.text.tied:  # a source may say "tied" and store a projection of its own
        new["tie_word_embeddings"] = False
        for part in {*family.text_configs} & new.keys():
            new[part] = {**new[part], "tie_word_embeddings": False}
    if naming == "hf":
        new["architectures"] = [family.architecture]
    new.pop("reward_head", None)
    if config.reward_head is not None:
        new["reward_head"] = config.reward_head
    return new


def with_dtype(config: Mapping[str, Any], dtype: np.dtype, naming: Naming, *, asked: bool) -> dict[str, Any]:
    """The config with its dtype replaced under all names for it (transformers 5 reads `dtype`, older versions `torch_dtype`),
    in the configs of its parts (`text_config`, `vision_config`, ...) too. A config that names no dtype gets one only if it was
    `asked` for."""
    nested = {name for name, value in config.items() if name.endswith("_config") and isinstance(value, Mapping)}
    new = {name: with_dtype(value, dtype, naming, asked=False) if name in nested else value for name, value in config.items()}
    names = [name for name in ("dtype", "torch_dtype") if name in new]
    if asked and not names:
        names = ["dtype" if naming == "hf" else "torch_dtype"]
    return new | dict.fromkeys(names, dtype.name)


def write_model_files(
    source: Path,
    directory: Path,
    family: Family,
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerFast | None,
    naming: Naming,
    *,
    converted: bool,
) -> None:
    """Copy the files beside the source's weights, and in Hugging Face naming write those that the source lacks.

    `converted` says that `naming` is not the source's: then the tokenizer and the processors are written anew.
    """
    code = family.code_files if naming == "original" else () if converted else _own_code(source)
    _copy(source, directory, (*TOKENIZER_FILES, GENERATION, *family.processor_files, *code))
    templates = read_chat_templates(source)
    if naming == "hf":
        if tokenizer is not None:
            templates = _with_default(templates, tokenizer, family)
            if converted:
                tokenizer.save_pretrained(directory)
            if not (directory / GENERATION).exists():
                write_json(directory / GENERATION, _generation(tokenizer, end_tokens(source)))
        _write_processors(directory, family.processors(config), keep=not converted)
    write_chat_templates(directory, templates)


def _own_code(source: Path) -> tuple[str, ...]:
    """The Python files that a config.json names in `auto_map` as its model's classes ("file.Class"). Without them transformers
    could not load the model; names of other repositories ("owner/name--file.Class") stay as they are."""
    config = strict_json.loads((source / "config.json").read_text())
    names = config.get("auto_map") if isinstance(config.get("auto_map"), dict) else {}
    modules = (value.partition(".")[0] for value in names.values() if isinstance(value, str))
    return tuple(sorted({f"{module}.py" for module in modules if module.isidentifier()}))


def write_new_files(directory: Path, family: Family, config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the files beside the weights of a new model: tokenizer, processors and generation config."""
    tokenizer.save_pretrained(directory)
    _write_processors(directory, family.processors(config))
    write_json(directory / GENERATION, _generation(tokenizer))


def _with_default(templates: Mapping[str, str], tokenizer: PreTrainedTokenizerFast, family: Family) -> Mapping[str, str]:
    """The source's chat templates, with the default one that its family gives it if it has none."""
    if isinstance(tokenizer.chat_template, str):  # may have been set by the family (`Family.prepare_tokenizer`)
        return {**templates, DEFAULT: tokenizer.chat_template}
    if not templates and family.default_chat_template() is not None:
        return {DEFAULT: family.default_chat_template()}
    return templates


def _generation(tokenizer: PreTrainedTokenizerFast, ends: Sequence[int] = ()) -> dict[str, Any]:
    """A generation config with all tokens that end a text: the tokenizer's, the source's `ends`, and ChatML's <|im_end|>."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    closing = tokenizer.get_vocab().get(IM_END)
    stops = [number for number in dict.fromkeys([ids["eos_token_id"], *ends, closing]) if number is not None]
    ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops or None
    return {name: value for name, value in ids.items() if value is not None}


def _write_processors(directory: Path, files: Mapping[str, Mapping[str, Any]], *, keep: bool = False) -> None:
    """Write processor files by name; with `keep`, existing files stay as they are."""
    for name, content in files.items():
        if not (keep and (directory / name).exists()):
            write_json(directory / name, content)


def _copy(source: Path, directory: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(strict_json.dumps(value, indent=2, sort_keys=True) + "\n")
