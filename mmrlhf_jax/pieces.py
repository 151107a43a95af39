"""What a conversation is written of, so that the text of users and control tokens never mix."""

from __future__ import annotations

import dataclasses


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
    """Medium number `index` of the record (an image, or the video). What stands there is the model family's to say."""

    index: int


@dataclasses.dataclass(frozen=True)
class Visual:
    """As many slots of visual features, one after the other."""

    count: int


Piece = Text | Special | Media | Visual


def expand(pieces: list[Piece], media: list[tuple[Piece, ...]]) -> list[Piece]:
    """The pieces with those of its medium in every `Media`'s place.

    Texts that come to stand side by side become one, because a tokenizer may join characters across their border.
    """
    expanded: list[Piece] = []
    for piece in pieces:
        for part in media[piece.index] if isinstance(piece, Media) else (piece,):
            before = expanded[-1] if expanded else None
            if isinstance(part, Text) and isinstance(before, Text) and before.target_from is None:
                start = None if part.target_from is None else len(before.text) + part.target_from
                expanded[-1] = Text(before.text + part.text, start)
            else:
                expanded.append(part)
    return expanded
