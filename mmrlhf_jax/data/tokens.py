"""Conversations to tokens, and K conversations to one trunk with K branches.

Each conversation is tokenised exactly as an unshared trainer would. The longest common token prefix of the K conversations
is the trunk; what remains of each is its branch. Sharing is therefore exact by construction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmrlhf_jax.data.templates import Media, Piece, Special, Text
from mmrlhf_jax.errors import UserError


class Conversation(NamedTuple):
    """`is_target[i]`: token i is to be predicted (it belongs to the response)."""

    tokens: np.ndarray  # int32[N]
    is_target: np.ndarray  # bool[N]


def cut(conversation: Conversation, most: int) -> Conversation:
    """The conversation up to its `most`-th target, if it has more. What is cut off ends it without a closing token, so that
    nothing is learnt about stopping there; everything before the first target, images included, stays whole."""
    targets = np.flatnonzero(conversation.is_target)
    if len(targets) <= most:
        return conversation
    end = targets[most - 1] + 1
    return Conversation(conversation.tokens[:end], conversation.is_target[:end])


class TokenTree(NamedTuple):
    """K conversations laid out as trunk, branch 1, ..., branch K in N slots. All indices are slots of this layout.

    `visible_until[k]` is the first slot that no longer sees k. `responses[m]` says which conversation target m belongs to.
    `ends[r]` is the slot of conversation r's last token.
    """

    tokens: np.ndarray  # int32[N]
    positions: np.ndarray  # int32[N]
    visible_until: np.ndarray  # int32[N]
    targets: np.ndarray  # int32[M]
    predictors: np.ndarray  # int32[M]
    responses: np.ndarray  # int32[M]
    ends: np.ndarray  # int32[K]
    trunk: int  # length of the shared prefix


@dataclasses.dataclass(frozen=True)
class PieceTokenizer:
    """Turns template pieces into ids. `tokenizer` is a fast Hugging Face tokenizer."""

    tokenizer: object
    image_token: int

    def __post_init__(self):
        # User text must never become a control token: added tokens that it spells are encoded as ordinary text.
        self.tokenizer.backend_tokenizer.encode_special_tokens = True

    def __setstate__(self, state):
        # Pickling, as on the way into a worker process, forgets that setting.
        self.__dict__.update(state)
        self.__post_init__()

    def conversation(self, pieces: Sequence[Piece], media_tokens: Sequence[int]) -> Conversation:
        """`media_tokens[i]` is how many visual tokens medium i takes."""
        ids: list[np.ndarray] = []
        target: list[np.ndarray] = []
        for piece in pieces:
            match piece:
                case Special(token, is_target):
                    ids.append(np.asarray([self.special(token)]))
                    target.append(np.asarray([is_target]))
                case Media(index):
                    ids.append(np.full(media_tokens[index], self.image_token))
                    target.append(np.zeros(media_tokens[index], bool))
                case Text(text, target_from):
                    piece_ids, ends = self.text(text)
                    ids.append(np.asarray(piece_ids, np.int32))
                    # A token that holds any character of the response is the response's.
                    target.append(np.asarray(ends) > (len(text) if target_from is None else target_from))
        return Conversation(np.concatenate(ids).astype(np.int32), np.concatenate(target))

    def special(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise UserError(f"the tokenizer has no token {token!r}; this template needs a ChatML tokenizer")
        return found

    def text(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of plain text and the character at which each ends."""
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        if self.image_token in encoding.ids:  # an added token that is not marked special still matches: split inside it
            return self._text_split_at_added(text)
        return encoding.ids, [end for _, end in encoding.offsets]

    def _text_split_at_added(self, text: str) -> tuple[list[int], list[int]]:
        name = self.tokenizer.convert_ids_to_tokens(self.image_token)
        cut = text.index(name) + 1
        (left, left_ends), (right, right_ends) = self.text(text[:cut]), self.text(text[cut:])
        return left + right, left_ends + [cut + end for end in right_ends]


def token_tree(conversations: Sequence[Conversation]) -> TokenTree:
    """Lay out K >= 1 conversations with their longest common prefix stored once."""
    trunk = common_prefix([c.tokens for c in conversations])
    lengths = [len(c.tokens) - trunk for c in conversations]
    starts = trunk + np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    total = int(starts[-1])
    first = conversations[0].tokens[:trunk]

    targets, predictors, responses, ends = [], [], [], []
    for r, conversation in enumerate(conversations):
        # Where token i of this conversation lies in the layout.
        slots = np.concatenate([np.arange(trunk), np.arange(starts[r], starts[r] + lengths[r])])
        where = np.flatnonzero(conversation.is_target)
        targets.append(conversation.tokens[where])
        predictors.append(slots[where - 1])
        responses.append(np.full(len(where), r))
        ends.append(slots[-1])

    positions = [np.arange(trunk)] + [np.arange(trunk, trunk + n) for n in lengths]
    visible_until = [np.full(trunk, total)] + [np.full(n, starts[r + 1]) for r, n in enumerate(lengths)]
    return TokenTree(
        tokens=_int32([first] + [c.tokens[trunk:] for c in conversations]),
        positions=_int32(positions),
        visible_until=_int32(visible_until),
        targets=_int32(targets),
        predictors=_int32(predictors),
        responses=_int32(responses),
        ends=np.asarray(ends, np.int32),
        trunk=trunk,
    )


def common_prefix(sequences: Sequence[np.ndarray]) -> int:
    """Length of the longest common prefix."""
    shortest = min(len(s) for s in sequences)
    same = np.all([s[:shortest] == sequences[0][:shortest] for s in sequences], axis=0)
    return int(shortest if same.all() else np.argmin(same))


def _int32(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32)
