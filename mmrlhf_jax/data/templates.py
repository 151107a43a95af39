"""Chat templates and the critique prompt, as pieces that keep user text apart from control tokens.

A conversation is a sequence of pieces. Only `Special` and `Media` pieces become control tokens; text remains text even if it
contains `<image>` or `<|im_end|>`. Source: MM-RLHF `llava/conversation.py` (`qwen_1_5`), `train_dpo.py` (`preprocess_qwen`).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.pieces import Media, Piece, Special, Text
from mmrlhf_jax.places import IMAGE_TAG, PromptText

SYSTEM = "You are a helpful assistant."


class Turn(NamedTuple):
    """A message: the text that follows its media, or the texts around them."""

    role: Literal["system", "user", "assistant"]
    prompt: PromptText
    media: int = 0


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


# Placeholders for a conversation's texts while a Jinja template is rendered, with characters of Unicode's private use area.
_PROMPT, _RESPONSE = "\ue000prompt{}\ue001", "\ue000response\ue001"
_MEDIUM = "medium"
_STAND_IN = re.compile(re.escape(_PROMPT).replace(r"\{\}", "([0-9]+)"))


THINK, END_THINK = "<think>", "</think>"  # around what a model writes for itself before its response
# What a template finds thoughts by, and the line breaks that it takes off them.
_MARKS = re.compile(r"(\n*</?think>\n*|\A\n+|\n+\Z)")
CLOCK = "strftime_now"  # a function that transformers provides to templates; its result depends on the date


class CheckpointTemplate:
    """A checkpoint's own chat template (Jinja), as pieces.

    It is rendered with placeholders for the texts, so that only text from the template itself can become control tokens. The
    assistant's turn begins as for generation (`add_generation_prompt`) in training as well, because some templates begin the
    two differently. Media are placed where the template writes `{"type": "image"}` parts, as one of `media_tags`. A template
    for text only is given the first tag, on lines before the prompt or inside it. A template that moves media out of the middle
    of a text is refused for such a text.

    If a turn that is to be generated begins inside a block of thoughts (`<think>`), a response without thoughts stands where
    the template writes it, usually behind an empty block, which is then no target. A response that closes the block itself
    begins inside it, as it was generated. An earlier turn of the assistant with thoughts is shown to a template that knows of
    them with a placeholder for each part, because such templates leave old thoughts out, or write them in their own form.
    """

    def __init__(self, tokenizer: Any, media_tags: Sequence[str] = (IMAGE_TAG,)) -> None:
        if not tokenizer.chat_template:
            raise UserError("data.template: checkpoint: the tokenizer has no chat template; choose qwen_1_5")
        if CLOCK in str(tokenizer.chat_template):  # tokens would change every day, and with them caches and resumed runs
            raise UserError(f"data.template: checkpoint: the chat template writes today's date ({CLOCK}); choose qwen_1_5")
        self.tokenizer, self.tags = tokenizer, tuple(media_tags)
        self._any_tag = "|".join(map(re.escape, self.tags))
        self._knows_thoughts = END_THINK in str(tokenizer.chat_template)

    def __call__(self, prompt: PromptText, media: int, response: str | None) -> list[Piece]:
        turn = _as_divided(Turn("user", prompt, media))
        opening, unthinking, closing = self._render((_shape(turn),))
        thinks = response is None or END_THINK in response
        pieces = self._pieces(opening if thinks else unthinking, _texts([turn]))
        if response is None:
            return pieces
        if opening != unthinking and thinks:
            response = response.removeprefix(THINK).removeprefix("\n")
        header = pieces.pop().text if pieces and isinstance(pieces[-1], Text) else ""
        end = self._pieces(closing, ())
        text = header + response
        if end and isinstance(end[0], Text) and len(end) > 1:  # text before the closing token is part of the response
            text += end.pop(0).text
        if end and isinstance(end[0], Special):
            end[0] = Special(end[0].token, target=True)
        return [*pieces, Text(text, target_from=len(header)), *end]

    def chat(self, turns: Sequence[Turn]) -> list[Piece]:
        """Several turns; the assistant's next turn is open."""
        divided = [self._divided(turn) for turn in turns]
        return self._pieces(self._render(tuple(map(_shape, divided)))[0], _texts(divided))

    def _divided(self, turn: Turn) -> _Divided:
        has_thoughts = turn.role == "assistant" and isinstance(turn.prompt, str) and END_THINK in turn.prompt
        if not (self._knows_thoughts and has_thoughts) or turn.media:
            return _as_divided(turn)
        parts = _MARKS.split(turn.prompt)
        return _Divided(turn.role, tuple(parts[::2]), tuple(parts[1::2]), is_plain=False)

    @functools.lru_cache(maxsize=1024)  # noqa: B019  (an entry per form of conversation, which are few)
    def _render(self, turns: tuple[_Shape, ...]) -> tuple[str, str, str]:
        """(rendered text before what is to be generated, before a response without thoughts, and after either)."""
        contents, droppable = _contents(turns), _droppable(turns)
        wanted = [one for content in contents for one in content if one == _MEDIUM or _STAND_IN.fullmatch(one)]
        wanted = [one for one in wanted if one not in droppable]
        for join in (self._as_parts, self._as_text):
            messages = [
                {"role": turn.role, "content": join(content, turn.media_first)}
                for turn, content in zip(turns, contents, strict=True)
            ]
            answer = _content(messages[-1]["content"], _RESPONSE)
            try:
                opening = self._apply(messages, add_generation_prompt=True)
                complete = self._apply([*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
            except Exception as error:  # TemplateError, or any error of the template's expressions
                reason = error
                continue
            self._check_tags(opening)
            found = [match[0] for match in re.finditer(f"{_STAND_IN.pattern}|{self._any_tag}", opening)]
            found = [_MEDIUM if one in self.tags else one for one in found if one not in droppable]
            whole = "'type'" not in opening and complete.count(_RESPONSE) == 1
            if whole and found == wanted:
                before, _, after = complete.partition(_RESPONSE)
                return opening, before if opening.rstrip().endswith(THINK) else opening, after
            if whole and sorted(found) == sorted(wanted):
                raise UserError(
                    "data.template: checkpoint: the chat template moves media out of their places inside the text;"
                    " choose qwen_1_5"
                )
            reason = "it leaves out a part of the conversation"
        raise UserError(f"data.template: checkpoint: the chat template cannot be used ({reason}); choose qwen_1_5")

    def _check_tags(self, rendered: str) -> None:
        """UserError if a rendered conversation has a token of a tag, but not the whole tag."""
        rest, added = re.sub(self._any_tag, "", rendered), self.tokenizer.get_added_vocab()
        for tag in self.tags:
            tokens = [] if tag in added else [name for name in added if name in tag]
            if alone := next((name for name in tokens if name in rest), None):
                raise UserError(
                    f"data.template: checkpoint: the chat template writes {alone} where this model's media are {tag}; choose"
                    " qwen_1_5, or correct the template"
                )

    def _as_parts(self, content: Sequence[str], media_first: bool) -> list[dict[str, str]]:
        runs = itertools.groupby(content, key=lambda one: one == _MEDIUM)
        each = ([{"type": "image"} for _ in run] if media else [{"type": "text", "text": "".join(run)}] for media, run in runs)
        return [part for parts in each for part in parts]

    def _as_text(self, content: Sequence[str], media_first: bool) -> str:
        line = f"{self.tags[0]}\n" if media_first else self.tags[0]
        return "".join(line if one == _MEDIUM else one for one in content)

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


class _Divided(NamedTuple):
    """A turn's texts, and what stands between each and the next: a medium, or marks of thoughts."""

    role: str
    texts: tuple[str, ...]
    between: tuple[str, ...]
    is_plain: bool  # one text behind all media, which is there even if it is empty


def _as_divided(turn: Turn) -> _Divided:
    """A turn that is divided by its media alone."""
    plain = isinstance(turn.prompt, str)
    texts = ("",) * turn.media + (turn.prompt,) if plain else turn.prompt
    return _Divided(turn.role, texts, (_MEDIUM,) * turn.media, plain)


class _Shape(NamedTuple):
    """The form of a turn: whether each of its texts is there, and what stands between them."""

    role: str
    there: tuple[bool, ...]
    between: tuple[str, ...]
    media_first: bool


def _shape(turn: _Divided) -> _Shape:
    *before, last = map(bool, turn.texts)
    return _Shape(turn.role, (*before, turn.is_plain or last), turn.between, turn.is_plain)


def _texts(turns: Sequence[_Divided]) -> tuple[str, ...]:
    """The texts of all turns, by the numbers of their placeholders."""
    return tuple(text for turn in turns for text in turn.texts)


def _contents(turns: Sequence[_Shape]) -> list[list[str]]:
    """Every turn's placeholders of texts, and what stands between them, in order."""
    found, number = [], itertools.count()
    for turn in turns:
        content: list[str] = []
        for is_text, between in itertools.zip_longest(turn.there, turn.between):
            stand_in = _PROMPT.format(next(number))
            content += [stand_in] if is_text else []
            content += [between] if between else []
        found.append(content)
    return found


def _droppable(turns: Sequence[_Shape]) -> frozenset[str]:
    """The placeholders of thoughts: of what stands before the end of a turn's last block of them."""
    found, first = set(), 0
    for turn in turns:
        ends = [place for place, between in enumerate(turn.between) if END_THINK in between]
        found |= {_PROMPT.format(first + place) for place in range(ends[-1] + 1 if ends else 0)}
        first += len(turn.there)
    return frozenset(found)


def _content(like: Any, text: str) -> Any:
    """`text` as message content in the form of `like`: a list of parts, or a string."""
    return text if isinstance(like, str) else [{"type": "text", "text": text}]
