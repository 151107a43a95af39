"""Chat templates and the critique prompt, as pieces that keep user text apart from control tokens.

A conversation is a sequence of pieces. Only `Special` and `Media` pieces become control tokens; text stays text even if it
spells `<image>` or `<|im_end|>`. Reference: MM-RLHF `llava/conversation.py` (`qwen_1_5`), `train_dpo.py` (`preprocess_qwen`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

SYSTEM = "You are a helpful assistant."
IM_START, IM_END = "<|im_start|>", "<|im_end|>"

# Upstream's released reward model depends on this text character by character (MM-RLHF `eval_mm_reward_bench.py`).
CRITIQUE_PROMPT = (
    "You are an unbiased and fair evaluator tasked with assessing the quality of answers provided by a Large Multimodal Model"
    " (LMM). Given the following question and the LMM's response, please evaluate the correctness, clarity, and completeness"
    " of the answer. Provide a detailed explanation of your assessment, including specific points of strength and areas for"
    " improvement.\n\n[Question]: {question}\n[LMM Response]: {answer}\n\n[Evaluation]:"
)

# The same conversation as `qwen_1_5`, in the Jinja of tokenizers, for whoever uses an exported model with transformers.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set media = message['content'] | selectattr('type', 'in', ['image', 'video']) | list %}"
    "{% for part in media %}<{{ part['type'] }}>{{ '\n' if loop.last else ' ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Text:
    """Plain text. From character `target_from` on (None: nowhere) its tokens are training targets."""

    text: str
    target_from: int | None = None


@dataclasses.dataclass(frozen=True)
class Special:
    """One control token, by its name in the tokenizer."""

    token: str
    target: bool = False


@dataclasses.dataclass(frozen=True)
class Media:
    """The visual tokens of medium number `index` of the record (an image, or the video)."""

    index: int


Piece = Text | Special | Media


def qwen_1_5(prompt: str, media: int, response: str | None, *, after_media: str = "\n", system: str = SYSTEM) -> list[Piece]:
    """One user turn with `media` media before the prompt, and the assistant's turn.

    `response` None leaves the assistant's turn open, for generation. Targets are the response and its `<|im_end|>`.
    """
    pieces: list[Piece] = [Special(IM_START), Text(f"system\n{system}"), Special(IM_END), Text("\n")]
    pieces.append(Special(IM_START))
    if media:
        pieces.append(Text("user\n"))
        for index in range(media):
            pieces += [Text(" "), Media(index)] if index else [Media(index)]
        pieces.append(Text(after_media + prompt))
    else:
        pieces.append(Text("user\n" + prompt))
    pieces += [Special(IM_END), Text("\n"), Special(IM_START)]
    if response is None:
        return [*pieces, Text("assistant\n")]
    header = "assistant\n"
    return [*pieces, Text(header + response, target_from=len(header)), Special(IM_END, target=True), Text("\n")]


def upstream_train(prompt: str, media: int, response: str | None) -> list[Piece]:
    """As MM-RLHF tokenised in training: a second newline between media and prompt."""
    return qwen_1_5(prompt, media, response, after_media="\n\n")


TEMPLATES: dict[str, Callable[[str, int, str | None], list[Piece]]] = {
    "qwen_1_5": qwen_1_5,
    "upstream_train": upstream_train,
}


def critique_prompt(question: str, answer: str) -> str:
    """The user turn that asks the reward model for a critique of `answer`."""
    return CRITIQUE_PROMPT.format(question=question, answer=answer)
