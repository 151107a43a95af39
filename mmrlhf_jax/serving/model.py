"""The model that is served: its trees for requests, and its texts."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import statistics
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import image_size
from mmrlhf_jax.data.templates import find_chat
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.inference.critic import critique_conversation
from mmrlhf_jax.inference.engine import Engine
from mmrlhf_jax.inference.prompts import (
    Prompt,
    Rewarded,
    make_tree,
    positions_of,
    scored_tree,
    trunk_length,
    with_trunk,
)
from mmrlhf_jax.inference.requests import Branch, Tree
from mmrlhf_jax.inference.sampling import GREEDY, Sampling
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.records import RankedRecord, Response
from mmrlhf_jax.serving import media
from mmrlhf_jax.serving.conversation import Conversation
from mmrlhf_jax.serving.errors import ApiError

USUAL_CRITIQUE = 512  # tokens


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a chat request wants of its texts."""

    most: int | None  # new tokens; None: as many as there is room for
    samples: int
    sampling: Sampling
    stops: frozenset[int]
    top: bool


class ServedModel:
    """Makes trees of requests. Its methods take long and hold no state: they run in threads of their own."""

    def __init__(self, engine: Engine, name: str, longest_trunk: int, longest_branch: int):
        self.engine, self.name = engine, name
        self.longest_trunk, self.longest_branch = longest_trunk, longest_branch
        self._chat = find_chat(engine.template, engine.tokenizer, family_of(engine.config).media_tags)

    @functools.cached_property
    def _encoder(self):
        return self.engine.encoder("answer")

    def chat_tree(self, conversation: Conversation, wanted: Wanted) -> tuple[Tree, int]:
        """(the tree of a chat request, tokens of its prompt). ApiError if it is too long or its pictures cannot be read."""
        example, encoder = conversation.example, self._encoder
        plans = self._plans(conversation)
        pieces = self._chat(conversation.turns)
        whole = encoder.tokens(pieces, plans)
        tokens = len(whole.tokens)
        trunk = trunk_length([whole])
        room = self.longest_branch - (tokens - trunk)
        most = room if wanted.most is None else wanted.most
        self._check_length(tokens, trunk, most, room)
        branch = Branch(
            whole.tokens[trunk:],
            int(positions_of(whole)[trunk].max()),
            most,
            wanted.stops | frozenset(self.engine.stop_tokens),
            wanted.sampling,
            top=wanted.top,
        )
        branches = [dataclasses.replace(branch, sample=number) for number in range(wanted.samples)]
        self._check_pictures(example)
        key = _key(whole.tokens[:trunk], example)
        return with_trunk(whole, trunk, branches, encoder, plans, lambda: example, key), tokens

    def _plans(self, conversation: Conversation):
        sizes = [image_size(data, "messages") for data in conversation.images]
        tiles = len(sizes) if conversation.low else 0
        return tuple(self._encoder.geometry.plans(sizes, len(conversation.frames), tiles))

    def rewards_tree(self, conversation: Conversation, asked: Rewards) -> Tree:
        """The tree of a rewards request: `asked.samples` branches for each response. ApiError as in `chat_tree`."""
        given = asked.critiques or (None,) * len(asked.responses)
        responses = [Response(text, critique=critique) for text, critique in zip(asked.responses, given, strict=True)]
        return self.record_tree(conversation.question(responses), asked)

    def record_tree(self, example: Example, asked: Rewards) -> Tree:
        """The tree of the responses of a record."""
        self._check_pictures(example)
        try:
            if asked.critique == "written":
                tree = self._critiques_tree(example, asked)
            else:
                tree = scored_tree(example, self.engine.encoder("uncritiqued" if asked.critique == "none" else "critique"))
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from None
        longest = max(branch.length for branch in tree.branches)
        if len(tree.tokens) > self.longest_trunk or longest > self.longest_branch:
            raise self._too_long(len(tree.tokens), longest)
        return dataclasses.replace(tree, key=_key(tree.tokens, example))

    def with_responses(self, example: Example, responses: Sequence[str], critiques: Sequence[str | None]) -> Example:
        """A record's prompt and media with other responses."""
        made = tuple(Response(text, critique=critique) for text, critique in zip(responses, critiques, strict=True))
        return dataclasses.replace(example, record=dataclasses.replace(example.record, responses=made))

    def plain(self, text: str) -> str:
        """A response without the control tokens that a trainer's decoding has left at its end."""
        ends = [self.engine.tokenizer.convert_ids_to_tokens(number) for number in self.engine.stop_tokens]
        while end := next((end for end in ends if text.rstrip("\n").endswith(end)), None):
            text = text.rstrip("\n").removesuffix(end)
        return text

    def _critiques_tree(self, example: Example, asked: Rewards) -> Tree:
        most = min(USUAL_CRITIQUE, self.longest_branch // 2) if asked.most is None else asked.most
        wanted = self.engine.asked(most, sampling=asked.sampling, samples=asked.samples, rewarded=self._of_text)
        tree = make_tree([Prompt(example, response) for response in example.record.responses], self._encoder, wanted)
        fitting = lambda branch: _Fitting(branch, self._closing, self.longest_branch)
        return dataclasses.replace(
            tree, branches=[dataclasses.replace(branch, scored=fitting(branch)) for branch in tree.branches]
        )

    @functools.cached_property
    def _of_text(self) -> Rewarded:
        return critique_conversation(self.engine)

    @functools.cached_property
    def _closing(self) -> np.ndarray:
        """The tokens that end a critique's conversation."""
        found = self._of_text(RankedRecord("closing", "", ()), Response(""), (), self.engine.tokenizer("a").input_ids)
        return found.tokens[int(np.flatnonzero(found.is_target)[-1]) :]

    def _check_pictures(self, example: Example) -> None:
        """Decode every picture once, so that one that is broken is refused before it reaches the lanes."""
        for data in (*example.images, *example.frames):
            media.decode(data, "messages")

    def _check_length(self, tokens: int, trunk: int, most: int, room: int) -> None:
        positions = self.engine.config.text.max_positions
        if trunk > self.longest_trunk or most < 1 or most > room or (positions is not None and tokens + most > positions):
            raise self._too_long(tokens, max(most, 1))

    def _too_long(self, tokens: int, new: int) -> ApiError:
        return ApiError(
            400,
            f"the prompt has {tokens} tokens and {new} more are asked for; this server has room for {self.longest_trunk} tokens"
            f" of a prompt and {self.longest_branch} behind it",
            param="messages",
            code="context_length_exceeded",
        )


@dataclasses.dataclass(frozen=True)
class Rewards:
    """What a rewards request wants."""

    responses: tuple[str, ...]
    critique: Literal["written", "given", "none"] = "written"
    critiques: tuple[str, ...] | None = None
    samples: int = 1
    sampling: Sampling = GREEDY
    most: int | None = None  # tokens of a critique; None: USUAL_CRITIQUE, or half of a branch if that is less


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """What `branch.scored` gives: the conversation with a critique's text, as `mmrlhf score` has it. If that has more tokens
    than there is room for (a text of broken characters), it is the one with the tokens as they were written."""

    branch: Branch
    closing: np.ndarray
    room: int

    def __call__(self, new: list[int]) -> np.ndarray:
        found = self.branch.scored(new)
        if len(found) <= self.room:
            return found
        return np.concatenate([self.branch.tokens, np.asarray(new, np.int32), self.closing])


def _key(tokens: np.ndarray, example: Example) -> Hashable:
    """Equal for trunks with equal tokens and media."""
    digest = hashlib.sha256(np.ascontiguousarray(tokens, np.int32).tobytes())
    for data in (*example.images, *example.frames):
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def spread(rewards: Sequence[float]) -> float | None:
    """The standard deviation of a response's rewards; None of a single one."""
    return statistics.stdev(rewards) if len(rewards) > 1 else None
