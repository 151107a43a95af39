"""Prompts to trees: prompts about the same media share a trunk, which is stored and computed once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from mmrlhf_jax.data.encode import GroupEncoder, media_layout, media_tiles
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.tokens import Conversation, common_prefix
from mmrlhf_jax.inference.requests import Branch, Tree
from mmrlhf_jax.inference.sampling import GREEDY, Sampling
from mmrlhf_jax.models.media import Media, VisualPlan
from mmrlhf_jax.records import RankedRecord, Response


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt for the model: the example's own prompt or, with a `response`, the prompt for a critique of that response.

    `seed` is that of its random numbers; None: the one that all prompts of a call have.
    """

    example: Example
    response: Response | None = None
    seed: int | None = None


Rewarded = Callable[[RankedRecord, Response | None, Sequence[VisualPlan], list[int]], Conversation]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be written for every prompt.

    Attributes:
        most: the number of new tokens that are allowed.
        stops: tokens that end a text.
        samples: texts per prompt.
        rewarded: makes the conversation whose reward is wanted, of record, response, visual plans and the new tokens (without
            the one that ended them); None: no rewards.
        top: whether the log-probs of the likeliest tokens are wanted.
    """

    most: int
    stops: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    samples: int = 1
    rewarded: Rewarded | None = None
    top: bool = False


@dataclasses.dataclass(frozen=True)
class PromptTree:
    """A tree with the branches of the prompts `numbers`, which are indices in the list of prompts; one prompt's samples are
    neighbours."""

    numbers: tuple[int, ...]
    tree: Tree


# Slots of a branch for what a rewarded conversation has behind its new tokens, or more than these where it is tokenised anew.
CLOSING = 16


def prompt_trees(prompts: Sequence[Prompt], encoder: GroupEncoder, asked: Asked) -> list[PromptTree]:
    """Group prompts into trees: only adjacent prompts about the same example share one.

    UserError if a prompt with its new tokens exceeds the model's rotary embeddings.
    """
    return [
        PromptTree(numbers, make_tree(same, encoder, asked, functools.partial(_example, prompts, numbers[0])))
        for numbers, same in _neighbours(prompts)
    ]


def make_tree(
    prompts: Sequence[Prompt],
    encoder: GroupEncoder,
    asked: Asked,
    example_again: Callable[[], Example] | None = None,
    *,
    most_trunk: int | None = None,
) -> Tree:
    """The tree of prompts about one example. UserError if one exceeds the model's rotary embeddings.

    `example_again` reads the example when the tree's turn comes, so that its media need not be kept until then. `most_trunk` is
    the most tokens of the trunk, which must have all media; None: as many as the prompts have in common.
    """
    example = prompts[0].example
    plans = plans_of(example, encoder)
    conversations = [
        encoder.tokens(encoder.open_pieces(prompt.example.record, prompt.response, len(plans)), plans) for prompt in prompts
    ]
    longest = max(1 + int(positions_of(conversation).max()) for conversation in conversations)
    closing = 0 if asked.rewarded is None else CLOSING
    encoder.check_positions(example.record, longest, asked.most + closing)
    trunk = trunk_length(conversations, most_trunk)
    branches = []
    for prompt, conversation in zip(prompts, conversations, strict=True):
        branch = Branch(
            *_behind(conversation, trunk),
            asked.most,
            asked.stops,
            asked.sampling if prompt.seed is None else dataclasses.replace(asked.sampling, seed=prompt.seed),
            scored=None if asked.rewarded is None else _Scored(asked.rewarded, example.record, prompt.response, plans, trunk),
            top=asked.top,
            closing=closing,
        )
        branches += [dataclasses.replace(branch, sample=number) for number in range(asked.samples)]
    return with_trunk(conversations[0], trunk, branches, encoder, plans, example_again or functools.partial(_same, example))


def scored_tree(example: Example, encoder: GroupEncoder, *, most_trunk: int | None = None) -> Tree:
    """The tree of the conversations of an example's responses, as the encoder's task has them; nothing is written, and every
    branch has the reward of its conversation. UserError and `most_trunk` as in `make_tree`."""
    plans = plans_of(example, encoder)
    conversations = encoder.conversations(example.record, plans)
    encoder.check_positions(example.record, max(len(conversation.tokens) for conversation in conversations))
    trunk = trunk_length(conversations, most_trunk)
    branches = [Branch(*_behind(conversation, trunk), most=0) for conversation in conversations]
    return with_trunk(conversations[0], trunk, branches, encoder, plans, functools.partial(_same, example))


def plans_of(example: Example, encoder: GroupEncoder) -> tuple[VisualPlan, ...]:
    return tuple(encoder.plans(example.record, media_layout(example)))


def _behind(conversation: Conversation, trunk: int) -> tuple[np.ndarray, int]:
    """The tokens behind the trunk, and the position of the first of them."""
    return conversation.tokens[trunk:], int(positions_of(conversation)[trunk].max())


def with_trunk(
    conversation: Conversation,
    trunk: int,
    branches: Sequence[Branch],
    encoder: GroupEncoder,
    plans: tuple[VisualPlan, ...],
    example: Callable[[], Example],
    key: Hashable = None,
) -> Tree:
    """The tree whose trunk is the first `trunk` tokens of a conversation. `example` gives its media when its turn comes."""
    visual = np.flatnonzero(conversation.is_visual[:trunk]).astype(np.int32)
    media = _Media(example, encoder, plans, visual, trunk) if len(visual) else None
    return Tree(conversation.tokens[:trunk], positions_of(conversation)[:trunk], branches, visual, media, key)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """The tokens behind the trunk of the conversation whose reward is wanted."""

    conversation: Rewarded
    record: RankedRecord
    response: Response | None
    plans: tuple[VisualPlan, ...]
    trunk: int

    def __call__(self, new: list[int]) -> np.ndarray:
        return self.conversation(self.record, self.response, self.plans, new).tokens[self.trunk :]


@dataclasses.dataclass(frozen=True)
class _Media:
    """Makes the media of a tree: pixels are cut when its turn comes, and not kept before."""

    example: Callable[[], Example]
    encoder: GroupEncoder
    plans: tuple[VisualPlan, ...]
    visual: np.ndarray
    trunk: int

    def __call__(self) -> Media:
        geometry = self.encoder.geometry
        return geometry.of_group(media_tiles(self.example(), geometry), self.plans, self.visual, self.trunk)


def trunk_length(conversations: Sequence[Conversation], most: int | None = None) -> int:
    """The length of the trunk: of the common prefix, or its first `most` tokens, but for a token that every branch must have to
    begin with.

    ValueError if a visual token lies behind it.
    """
    trunk = common_prefix([conversation.tokens for conversation in conversations])
    trunk = min(trunk, *(len(conversation.tokens) - 1 for conversation in conversations))
    trunk = trunk if most is None else min(trunk, most)
    if any(conversation.is_visual[trunk:].any() for conversation in conversations):
        raise ValueError("prompts about the same media differ before them")
    return trunk


def positions_of(conversation: Conversation) -> np.ndarray:
    """int32[N] or int32[N, 3]: the positions of a conversation's tokens."""
    given = conversation.positions
    return np.arange(len(conversation.tokens), dtype=np.int32) if given is None else given


def _neighbours(prompts: Sequence[Prompt]) -> Iterator[tuple[tuple[int, ...], list[Prompt]]]:
    """Yield (indices, prompts) of adjacent prompts about the same record and media."""
    numbers: list[int] = []
    same: list[Prompt] = []
    for number in range(len(prompts)):
        prompt = prompts[number]
        if same and _subject(prompt) != _subject(same[0]):
            yield tuple(numbers), same
            numbers, same = [], []
        numbers.append(number)
        same.append(prompt)
    if same:
        yield tuple(numbers), same


def _example(prompts: Sequence[Prompt], number: int) -> Example:
    return prompts[number].example


def _same(example: Example) -> Example:
    return example


def _subject(prompt: Prompt) -> tuple:
    example = prompt.example
    media = (example.images, example.frames, example.video)
    return example.record.id, example.record.prompt_text(), *media, prompt.response is None
