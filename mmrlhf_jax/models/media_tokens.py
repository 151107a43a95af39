"""Checks of the tokens that stand for media: the tokenizer has them, and the model embeds those that are looked up. No jax."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.family import Checkpoint, ModelConfig


def check_media_tokens(
    vocabulary: Mapping[str, int], needed: Collection[str], image: str, stated: int | None, where: str, *, kind: str
) -> None:
    """UserError if a tokenizer's vocabulary lacks a `needed` token, or if its token `image` is not the config's `stated` one.

    `kind` names the tokenizer that the family expects, and `where` is the beginning of the message.
    """
    for token in needed:
        if token not in vocabulary:
            raise UserError(f"{where}: the tokenizer has no {token} token; it is not {kind}")
    if stated is not None and vocabulary[image] != stated:
        found = f"{image} is token {vocabulary[image]} of the tokenizer, but config says {stated}"
        raise UserError(f"{where}: {found}; tokenizer and model do not belong together")


def check_embedded(checkpoint: Checkpoint, model: ModelConfig, tokens: Mapping[str, int]) -> None:
    """UserError if the model has no embedding for one of these media tokens (name -> number), which transformers looks up."""
    if max(tokens.values()) >= model.text.vocab_size:
        named = " and ".join(f"the {name} ({number})" for name, number in tokens.items())
        raise UserError(
            f"{checkpoint.directory}: the embedding's {model.text.vocab_size} rows end before {named}, which transformers looks"
            " up; resize it, or use --naming original"
        )
