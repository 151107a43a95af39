"""A checkpoint's own chat template (Jinja), as pieces that keep user text apart from control tokens."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmrlhf_jax.data.turns import Turn
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.pieces import Media, Piece, Special, Text
from mmrlhf_jax.places import IMAGE_TAG, PromptText

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
