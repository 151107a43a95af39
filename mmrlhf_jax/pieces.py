"""The pieces of a conversation, which keep users' text apart from control tokens."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Text:
    """Plain text. Its tokens from character `target_from` on are training targets (None: no token is)."""

    text: str
    target_from: int | None = None


@dataclasses.dataclass(frozen=True)
class Special:
    """One control token, given by its name in the tokenizer."""

    token: str
    target: bool = False


@dataclasses.dataclass(frozen=True)
class Media:
    """Medium number `index` of the record (an image, or the video); the model family replaces it by pieces."""

    index: int


@dataclasses.dataclass(frozen=True)
class Visual:
    """`count` consecutive slots of visual features.

    For families whose positions have three axes, `grid` is the (rows, columns) of the features of an image, or of each of the
    `frames` of a clip, which are `interval` positions of time apart (rounded down from the first on).
    """

    count: int
    grid: tuple[int, int] | None = None
    frames: int = 1
    interval: float = 1.0


Piece = Text | Special | Media | Visual


def expand(pieces: list[Piece], media: list[tuple[Piece, ...]]) -> list[Piece]:
    """The pieces with every `Media` replaced by the pieces of its medium, `media[index]`.

    Texts that become adjacent are joined, because a tokenizer may merge characters across their border.
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
