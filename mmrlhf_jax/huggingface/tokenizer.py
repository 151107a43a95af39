"""The tokenizer of a model directory or hub id, checked against its model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, Unavailable, fault, first_line, retried
from mmrlhf_jax.files import read_json_object
from mmrlhf_jax.huggingface.chat_templates import DEFAULT, read_chat_templates
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.model_config import check_dtype
from mmrlhf_jax.models.registry import find_family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(model: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory or hub id, with the directory's chat template (`chat_templates`) and the tokens of
    its family's media (`Family.prepare_tokenizer`).

    Raises UserError where there is none, where it is not a fast tokenizer, where its media tokens are not the model's, or
    where it has tokens that the model has no embedding for.
    """
    # Not above: importing these takes seconds, and loads torch where it is installed.
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    directory = local_directory(model)
    if not (directory / "config.json").exists():
        raise UserError(f"{directory}: no config.json; a model is a directory with config, tokenizer and weights")
    raw = read_json_object(directory / "config.json")
    check_dtype(raw, f"{directory / 'config.json'}")
    family = find_family(raw, f"{directory / 'config.json'}")
    # transformers looks at the model's config, and would ask whether to run the code beside one of the original naming.
    config = AutoConfig.for_model(family.language_model) if family.naming(raw) == "original" else None
    try:
        load = partial(AutoTokenizer.from_pretrained, directory, config=config, trust_remote_code=False)
        tokenizer = retried(load, f"{directory}: the tokenizer")
    except Unavailable:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a broken tokenizer.json
        if fault(error) in (Fault.NO_MEMORY, Fault.DENIED):
            raise
        raise UserError(f"{directory}: the tokenizer cannot be loaded ({first_line(error)})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{directory}: the tokenizer is not a fast one; a tokenizer.json is needed")
    templates = read_chat_templates(directory)
    tokenizer.chat_template = templates.get(DEFAULT) or templates or None
    vocabulary = tokenizer.get_vocab().items()
    _check_ids(
        {token: n for token, n in vocabulary if token not in family.unembedded},
        family.vocabulary(raw, f"{directory}/config.json"),
        directory,
    )
    family.prepare_tokenizer(tokenizer, raw, f"{directory}")
    return tokenizer


def _check_ids(vocabulary: Mapping[str, int], rows: int, directory: os.PathLike[str]) -> None:
    """UserError if a token's id is beyond the `rows` of the embedding, because looking it up would give NaN."""
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if beyond:
        number, token = beyond[0]
        raise UserError(
            f"{directory}: the model has embeddings for {rows} tokens, the tokenizer has {len(beyond)} beyond them, first"
            f" {token!r} ({number}); they do not belong together, or the embedding was not resized when tokens were added"
        )
