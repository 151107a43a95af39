"""The quickstart's tokenizer: a byte-level BPE trained on its own corpus, with ChatML's control tokens.

A place's name is one token, although it is written as two words, so that the model predicts the object at a place from
a single token.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mmrlhf_jax.data.templates import IM_END, IM_START
from mmrlhf_jax.models.llava_onevision.processors import CHAT_TEMPLATE
from mmrlhf_jax.quickstart.scenes import PLACES

SPECIAL_TOKENS = ("<|endoftext|>", IM_START, IM_END, "<image>", "<video>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer with at most `vocab_size` tokens. Deterministic for the same texts in the same order."""
    bpe = Tokenizer(models.BPE())
    words = Regex(rf" ?(?:{'|'.join(PLACES)})\b| ?\w+| ?[^\s\w]+|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=IM_END,
        pad_token=SPECIAL_TOKENS[0],
        additional_special_tokens=[IM_START, "<image>", "<video>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
