"""Chat templates and the critique prompt, as pieces that keep user text apart from control tokens.

A conversation is a sequence of pieces. Only `Special` and `Media` pieces become control tokens; text remains text even if it
contains `<image>` or `<|im_end|>`. Source: MM-RLHF `llava/conversation.py` (`qwen_1_5`), `train_dpo.py` (`preprocess_qwen`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

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
    pieces: list[Piece] = [Special(IM_START), Text(f"system\n{system}"), Special(IM_END), Text("\n")]
    pieces.append(Special(IM_START))
    if not isinstance(prompt, str):
        pieces += _between_media(("user\n" + prompt[0], *prompt[1:]), media)
    elif media:
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


def _between_media(texts: tuple[str, ...], media: int) -> list[Piece]:
    if len(texts) != media + 1:
        raise ValueError(f"{len(texts)} texts around {media} media")
    pieces: list[Piece] = [Text(texts[0])] if texts[0] else []
    for index, text in enumerate(texts[1:]):
        pieces += [Media(index), Text(text)] if text else [Media(index)]
    return pieces


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


# Placeholders for a conversation's texts while a Jinja template is rendered, with characters of Unicode's private use area.
_PROMPT, _RESPONSE = "\ue000prompt{}\ue001", "\ue000response\ue001"
_MEDIUM = "medium"
_STAND_IN = re.compile(re.escape(_PROMPT).replace(r"\{\}", "([0-9]+)"))


CLOCK = "strftime_now"  # a function that transformers provides to templates; its result depends on the date


class CheckpointTemplate:
    """A checkpoint's own chat template (Jinja), as pieces.

    It is rendered with placeholders for the texts, so that only text from the template itself can become control tokens. The
    assistant's turn begins as for generation (`add_generation_prompt`) in training as well, because some templates begin the
    two differently. Media are placed where the template writes `{"type": "image"}` parts, as one of `media_tags`. A template
    for text only is given the first tag, on lines before the prompt or inside it. A template that moves media out of the middle
    of a text is refused for such a text.
    """

    def __init__(self, tokenizer: Any, media_tags: Sequence[str] = (IMAGE_TAG,)) -> None:
        if not tokenizer.chat_template:
            raise UserError("data.template: checkpoint: the tokenizer has no chat template; choose qwen_1_5")
        if CLOCK in str(tokenizer.chat_template):  # tokens would change every day, and with them caches and resumed runs
            raise UserError(f"data.template: checkpoint: the chat template writes today's date ({CLOCK}); choose qwen_1_5")
        self.tokenizer, self.tags = tokenizer, tuple(media_tags)
        self._any_tag = "|".join(map(re.escape, self.tags))

    def __call__(self, prompt: PromptText, media: int, response: str | None) -> list[Piece]:
        texts = ("",) * media + (prompt,) if isinstance(prompt, str) else prompt
        there = (*map(bool, texts[:-1]), isinstance(prompt, str) or bool(texts[-1]))  # a plain prompt counts even if empty
        opening, closing = self._render(there, isinstance(prompt, str))
        pieces = self._pieces(opening, texts)
        if response is None:
            return pieces
        header = pieces.pop().text if pieces and isinstance(pieces[-1], Text) else ""
        end = self._pieces(closing, ())
        text = header + response
        if end and isinstance(end[0], Text) and len(end) > 1:  # text before the closing token is part of the response
            text += end.pop(0).text
        if end and isinstance(end[0], Special):
            end[0] = Special(end[0].token, target=True)
        return [*pieces, Text(text, target_from=len(header)), *end]

    @functools.cache  # noqa: B019  (the cache has one entry per prompt shape, which are few)
    def _render(self, there: tuple[bool, ...], media_first: bool) -> tuple[str, str]:
        """(rendered text before the response, rendered text after it). `there[i]`: whether there is a text before medium i."""
        wanted: list[str] = []
        for number, is_text in enumerate(there):
            wanted += [_PROMPT.format(number)] if is_text else []
            wanted += [_MEDIUM] if number < len(there) - 1 else []
        parts = [{"type": "image"} if one == _MEDIUM else {"type": "text", "text": one} for one in wanted]
        line = f"{self.tags[0]}\n" if media_first else self.tags[0]
        for content in (parts, "".join(line if one == _MEDIUM else one for one in wanted)):
            user = {"role": "user", "content": content}
            answer = _content(content, _RESPONSE)
            try:
                opening = self._apply([user], add_generation_prompt=True)
                complete = self._apply([user, {"role": "assistant", "content": answer}], add_generation_prompt=False)
            except Exception as error:  # TemplateError, or any error of the template's expressions
                reason = error
                continue
            found = [match[0] for match in re.finditer(f"{_STAND_IN.pattern}|{self._any_tag}", opening)]
            found = [_MEDIUM if one in self.tags else one for one in found]
            whole = "'type'" not in opening and complete.count(_RESPONSE) == 1
            if whole and found == wanted:
                return opening, complete.partition(_RESPONSE)[2]
            if whole and sorted(found) == sorted(wanted):
                raise UserError(
                    "data.template: checkpoint: the chat template moves media out of their places inside the text;"
                    " choose qwen_1_5"
                )
            reason = "it leaves out a part of the conversation"
        raise UserError(f"data.template: checkpoint: the chat template cannot be used ({reason}); choose qwen_1_5")

    def _apply(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def _pieces(self, rendered: str, texts: tuple[str, ...]) -> list[Piece]:
        names = sorted({*self.tokenizer.get_added_vocab(), *self.tags}, key=len, reverse=True)
        pieces: list[Piece] = []
        media = 0
        for part in re.split("(" + "|".join([*map(re.escape, names), _PROMPT.format("[0-9]+")]) + ")", rendered):
            if part in self.tags:
                pieces.append(Media(media))
                media += 1
            elif part in names:
                pieces.append(Special(part))
            elif text := texts[int(stand_in[1])] if (stand_in := _STAND_IN.fullmatch(part)) else part:
                if pieces and isinstance(pieces[-1], Text):  # joined, so that both are tokenised as one text
                    text = pieces.pop().text + text
                pieces.append(Text(text))
        return pieces


def _content(like: Any, text: str) -> Any:
    """`text` as message content in the form of `like`: a list of parts, or a string."""
    return text if isinstance(like, str) else [{"type": "text", "text": text}]
