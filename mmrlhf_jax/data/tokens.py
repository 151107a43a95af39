"""Tokenises conversations, and lays out K conversations as one trunk with K branches.

Each conversation is tokenised exactly as in a trainer without shared prefixes. The longest common token prefix of the K
conversations is the trunk, and the rest of each is its branch. Sharing is therefore exact by construction.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrlhf_jax.data.positions import Clip, Run, three_axes
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.pieces import Piece, Special, Text, Visual, expand
from mmrlhf_jax.places import IMAGE_TAG


class Conversation(NamedTuple):
    """The N tokens of one conversation. Positions are [N, 3] for models whose positions have three axes."""

    tokens: np.ndarray  # int32[N]
    is_target: np.ndarray  # bool[N]: the token is a target of the loss (it belongs to the response)
    is_visual: np.ndarray  # bool[N]: the token's embedding is replaced by a visual feature
    positions: np.ndarray | None = None  # int32[N] or int32[N, 3]; None: 0, 1, ..., N - 1


def cut(conversation: Conversation, most: int) -> Conversation:
    """The conversation up to its `most`-th target, if it has more. No closing token is added, so that the model does not learn
    to stop there. Everything before the first target, images included, is kept."""
    targets = np.flatnonzero(conversation.is_target)
    if len(targets) <= most:
        return conversation
    end = targets[most - 1] + 1
    return Conversation(*(None if values is None else values[:end] for values in conversation))


class TokenTree(NamedTuple):
    """K conversations laid out as trunk, branch 1, ..., branch K in N slots. All indices are slots of this layout.

    Slots from `visible_until[k]` on do not attend to slot k. `responses[m]` is the conversation of target m. `ends[r]` is the
    slot of conversation r's last token.
    """

    tokens: np.ndarray  # int32[N]
    positions: np.ndarray  # int32[N], or int32[N, 3]
    visible_until: np.ndarray  # int32[N]
    targets: np.ndarray  # int32[M]
    predictors: np.ndarray  # int32[M]
    responses: np.ndarray  # int32[M]
    ends: np.ndarray  # int32[K]
    visual: np.ndarray  # int32[V]: the slots that visual features fill
    trunk: int  # length of the shared prefix


@dataclasses.dataclass(frozen=True)
class PieceTokenizer:
    """Turns template pieces into token ids.

    Attributes:
        tokenizer: a fast Hugging Face tokenizer.
        image_token: the id in every slot of a visual feature.
        media_tags: the tags that the tokenizer's own chat template may write in the place of a medium.
        media_tokens: further tokens that a text must never become, because they stand around media or for them.
        position_axes: the number of axes of the family's positions, 1 or 3.
    """

    tokenizer: object
    image_token: int
    media_tags: tuple[str, ...] = (IMAGE_TAG,)
    media_tokens: tuple[str, ...] = ()
    position_axes: int = 1

    @functools.cached_property
    def media_ids(self) -> frozenset[int]:
        """The ids of all media tokens. A token that is not marked as special matches inside ordinary text."""
        added = self.tokenizer.get_added_vocab()
        named = {added[token] for token in (*self.media_tags, *self.media_tokens) if token in added}
        return frozenset({self.image_token, *named})

    def conversation(self, pieces: Sequence[Piece], media: Sequence[Sequence[Piece]]) -> Conversation:
        """Tokenise pieces; `media[i]` are the pieces that replace medium i."""
        ids: list[np.ndarray] = []
        target: list[np.ndarray] = []
        visual: list[np.ndarray] = []
        runs: list[Run] = []
        for piece in expand(pieces, media):
            match piece:
                case Special(token, is_target):
                    ids.append(np.asarray([self.special(token)]))
                    target.append(np.asarray([is_target]))
                case Visual(count):
                    ids.append(np.full(count, self.image_token))
                    target.append(np.zeros(count, bool))
                case Text(text, target_from):
                    piece_ids, ends = self.text(text)
                    ids.append(np.asarray(piece_ids, np.int32))
                    # A token that contains any character of the response is a target.
                    target.append(np.asarray(ends) > (len(text) if target_from is None else target_from))
            visual.append(np.full(len(ids[-1]), isinstance(piece, Visual)))
            in_grid = isinstance(piece, Visual) and piece.grid is not None
            runs.append(Clip(piece.frames, *piece.grid, piece.interval) if in_grid else len(ids[-1]))
        positions = three_axes(runs) if self.position_axes == 3 else None
        return Conversation(np.concatenate(ids).astype(np.int32), np.concatenate(target), np.concatenate(visual), positions)

    def special(self, token: str) -> int:
        """The id of a control token. Raises UserError if the tokenizer has none of this name."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise UserError(f"the tokenizer has no token {token!r}; this template needs a ChatML tokenizer")
        return found

    def text(self, text: str) -> tuple[list[int], list[int]]:
        """(ids of plain text, for each id the offset of the character after it)."""
        ids: list[int] = []
        ends: list[int] = []
        start = 0
        while True:
            encoding = self._plain(text[start:])
            if self.media_ids.isdisjoint(encoding.ids):
                return ids + encoding.ids, ends + [start + end for _, end in encoding.offsets]
            found = next(i for i, token in enumerate(encoding.ids) if token in self.media_ids)
            # Cut behind the first character of the token's name, so that both halves are tokenised as ordinary text.
            cut = start + encoding.offsets[found][0] + 1
            before = self._plain(text[start:cut])
            ids += before.ids
            ends += [start + end for _, end in before.offsets]
            start = cut

    def _plain(self, text: str) -> Any:
        """The encoding of a text whose names of special tokens are ordinary text: it must never become a control token."""
        backend = self.tokenizer.backend_tokenizer
        if not backend.encode_special_tokens:  # pickling loses the setting, and a call of the tokenizer itself resets it
            backend.encode_special_tokens = True
        return backend.encode(text, add_special_tokens=False)


def token_tree(conversations: Sequence[Conversation]) -> TokenTree:
    """Lay out K >= 1 conversations, with their longest common prefix (equal tokens at equal positions) stored once."""
    positions = [np.arange(len(c.tokens)) if c.positions is None else c.positions for c in conversations]
    trunk = _trunk(conversations, positions)
    lengths = [len(c.tokens) - trunk for c in conversations]
    starts = trunk + np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    total = int(starts[-1])

    targets, predictors, responses, ends = [], [], [], []
    for r, conversation in enumerate(conversations):
        # slots[i] is the slot of token i of this conversation.
        slots = np.concatenate([np.arange(trunk), np.arange(starts[r], starts[r] + lengths[r])])
        where = np.flatnonzero(conversation.is_target)
        targets.append(conversation.tokens[where])
        predictors.append(slots[where - 1])
        responses.append(np.full(len(where), r))
        ends.append(slots[-1])

    def laid_out(sequences: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([sequences[0][:trunk], *(sequence[trunk:] for sequence in sequences)])

    visible_until = [np.full(trunk, total)] + [np.full(n, starts[r + 1]) for r, n in enumerate(lengths)]
    return TokenTree(
        tokens=laid_out([c.tokens for c in conversations]).astype(np.int32),
        positions=laid_out(positions).astype(np.int32),
        visible_until=_int32(visible_until),
        targets=_int32(targets),
        predictors=_int32(predictors),
        responses=_int32(responses),
        ends=np.asarray(ends, np.int32),
        visual=np.flatnonzero(laid_out([c.is_visual for c in conversations])).astype(np.int32),
        trunk=trunk,
    )


def _trunk(conversations: Sequence[Conversation], positions: Sequence[np.ndarray]) -> int:
    """Length of the trunk: the common prefix of tokens, positions and `is_visual`."""
    axes = positions[0].reshape(len(positions[0]), -1).shape[1]
    rows = [np.column_stack([c.tokens, c.is_visual, p.reshape(-1, axes)]) for c, p in zip(conversations, positions)]
    return common_prefix(rows)


def common_prefix(sequences: Sequence[np.ndarray]) -> int:
    """Length of the longest common prefix of arrays [N] or [N, ...], along their first axis."""
    shortest = min(len(s) for s in sequences)
    same = np.all([s[:shortest] == sequences[0][:shortest] for s in sequences], axis=0)
    same = same.reshape(shortest, -1).all(axis=1)
    return int(shortest if same.all() else np.argmin(same))


def _int32(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32)
