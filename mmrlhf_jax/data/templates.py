"""Chat templates and the critique prompt, as pieces that keep user text apart from control tokens.

A conversation is a sequence of pieces. Only `Special` and `Media` pieces become control tokens; text remains text even if it
contains `<image>` or `<|im_end|>`. Source: MM-RLHF `llava/conversation.py` (`qwen_1_5`), `train_dpo.py` (`preprocess_qwen`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmrlhf_jax.data.checkpoint_template import CheckpointTemplate
from mmrlhf_jax.data.turns import Turn
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.pieces import Media, Piece, Special, Text
from mmrlhf_jax.places import IMAGE_TAG, PromptText

SYSTEM = "You are a helpful assistant."


IM_START, IM_END = "<|im_start|>", "<|im_end|>"

# The released reward model was trained with exactly this text (MM-RLHF `eval_mm_reward_bench.py`); do not edit it.
CRITIQUE_PROMPT = (
    "You are an unbiased and fair evaluator tasked with assessing the quality of answers provided by a Large Multimodal Model"
    " (LMM). Given the following question and the LMM's response, please evaluate the correctness, clarity, and completeness"
    " of the answer. Provide a detailed explanation of your assessment, including specific points of strength and areas for"
    " improvement.\n\n[Question]: {question}\n[LMM Response]: {answer}\n\n[Evaluation]:"
)


def qwen_1_5(
    prompt: PromptText, media: int, response: str | None, *, after_media: str = "\n", system: str = SYSTEM
) -> list[Piece]:
    """One user turn and the assistant's turn. The `media` media come before the prompt, or between its texts if it has several.

    With `response` None the assistant's turn stays open, for generation. Targets are the response and its `<|im_end|>`.
    """
    pieces = qwen_1_5_chat([Turn("user", prompt, media)], after_media=after_media, system=system)
    if response is None:
        return pieces
    header = "assistant\n"
    return [*pieces[:-1], Text(header + response, target_from=len(header)), Special(IM_END, target=True), Text("\n")]


def qwen_1_5_chat(turns: Sequence[Turn], *, after_media: str = "\n", system: str = SYSTEM) -> list[Piece]:
    """Several turns, of which the first may be a system message in the place of `system`; the assistant's next turn is open."""
    if not turns or turns[0].role != "system":
        turns = [Turn("system", system), *turns]
    pieces: list[Piece] = []
    first = 0
    for turn in turns:
        pieces += [Special(IM_START), *_turn(turn, first, after_media), Special(IM_END), Text("\n")]
        first += turn.media
    return [*pieces, Special(IM_START), Text("assistant\n")]


def _turn(turn: Turn, first: int, after_media: str) -> list[Piece]:
    """Role and content of a turn, whose media begin with number `first`."""
    header, prompt = f"{turn.role}\n", turn.prompt
    if not isinstance(prompt, str):
        return _between_media((header + prompt[0], *prompt[1:]), turn.media, first)
    if not turn.media:
        return [Text(header + prompt)]
    pieces: list[Piece] = [Text(header)]
    for index in range(turn.media):
        pieces += [Text(" "), Media(first + index)] if index else [Media(first)]
    return [*pieces, Text(after_media + prompt)]


def _between_media(texts: tuple[str, ...], media: int, first: int = 0) -> list[Piece]:
    if len(texts) != media + 1:
        raise ValueError(f"{len(texts)} texts around {media} media")
    pieces: list[Piece] = [Text(texts[0])] if texts[0] else []
    for index, text in enumerate(texts[1:], first):
        pieces += [Media(index), Text(text)] if text else [Media(index)]
    return pieces


def upstream_train_chat(turns: Sequence[Turn]) -> list[Piece]:
    """Several turns as `upstream_train` has one."""
    return qwen_1_5_chat(turns, after_media="\n\n")


def upstream_train(prompt: PromptText, media: int, response: str | None) -> list[Piece]:
    """`qwen_1_5` as in MM-RLHF's training code, which has a second newline between media and prompt."""
    return qwen_1_5(prompt, media, response, after_media="\n\n")


Template = Callable[[PromptText, int, str | None], list[Piece]]

TEMPLATES: dict[str, Template] = {
    "qwen_1_5": qwen_1_5,
    "upstream_train": upstream_train,
}


def find_template(name: str, tokenizer: Any, media_tags: Sequence[str] = (IMAGE_TAG,)) -> Template:
    """A template by name. "checkpoint" is the tokenizer's own, which writes one of `media_tags` in the place of a medium.

    Raises UserError for an unknown name, or if the tokenizer has no usable template.
    """
    if name == "checkpoint":
        return CheckpointTemplate(tokenizer, media_tags)
    if name not in TEMPLATES:
        raise UserError(f"unknown chat template {name!r}; there are {', '.join([*TEMPLATES, 'checkpoint'])}")
    return TEMPLATES[name]


Chat = Callable[[Sequence[Turn]], list[Piece]]
CHATS: dict[str, Chat] = {"qwen_1_5": qwen_1_5_chat, "upstream_train": upstream_train_chat}


def find_chat(name: str, tokenizer: Any, media_tags: Sequence[str] = (IMAGE_TAG,)) -> Chat:
    """What writes several turns, by the name of a template as in `find_template`; the assistant's next turn is open."""
    found = find_template(name, tokenizer, media_tags)
    return found.chat if isinstance(found, CheckpointTemplate) else CHATS[name]


def closing_token(template: Template) -> str | None:
    """The control token that ends a response and stops generation; None if the template has none."""
    closing = [piece.token for piece in template("", 0, "") if isinstance(piece, Special) and piece.target]
    return closing[0] if closing else None


def writes_alike(tokenizer: Any, name: str, media_tags: Sequence[str] = (IMAGE_TAG,)) -> bool:
    """Whether the tokenizer's own chat template gives the same pieces as the template of this name."""
    try:
        own, other = (find_template(each, tokenizer, media_tags) for each in ("checkpoint", name))
        return all(own("prompt", media, None) == other("prompt", media, None) for media in (0, 1, 2))
    except UserError:
        return False


def critique_prompt(question: PromptText, answer: str) -> PromptText:
    """The user turn that asks the reward model for a critique of `answer`. Media inside the question keep their places."""
    before, after = CRITIQUE_PROMPT.split("{question}")
    after = after.replace("{answer}", answer)
    if isinstance(question, str):
        return before + question + after
    return (before + question[0], *question[1:-1], question[-1] + after)
