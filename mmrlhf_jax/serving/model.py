"""The model that is served: its trees for requests, and its texts."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import statistics
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from mmrlhf_jax.data.encode import media_layout, media_tiles
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.templates import find_chat, find_template
from mmrlhf_jax.data.tokens import Conversation as Tokens
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
from mmrlhf_jax.inference.texts import TokenBytes
from mmrlhf_jax.models.geometry import UnlikeFrames
from mmrlhf_jax.models.media import Media
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.pieces import Special
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
        self.fingerprint = f"mmrlhf-{engine.fingerprint[:16]}" if engine.fingerprint else None
        self._bytes = TokenBytes(engine.tokenizer)
        self._chat = find_chat(engine.template, engine.tokenizer, family_of(engine.config).media_tags)

    @functools.cached_property
    def _encoder(self):
        return self.engine.encoder("answer")

    def chat_tree(self, conversation: Conversation, wanted: Wanted) -> Tree:
        """The tree of a chat request. ApiError if it is too long or its pictures cannot be read."""
        example, encoder, geometry = conversation.example, self._encoder, self._encoder.geometry
        geometry = geometry.low_detail() if conversation.low else geometry
        layout = media_layout(example)
        try:
            plans = tuple(geometry.plans(layout.images, layout.video))
        except UserError as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None
        try:
            pieces = self._chat(conversation.turns)
        except UserError:
            raise ApiError(400, "messages: the model's chat template has no such order of roles", param="messages") from None
        whole = encoder.tokens(pieces, plans)
        tokens, trunk = len(whole.tokens), self._trunk(whole, wanted.most)
        room = self._room(tokens, trunk)
        most = max(room, 1) if wanted.most is None else wanted.most
        if trunk > self.longest_trunk or most > room:
            raise self._too_long(f"the prompt has {tokens} tokens and {most} more are asked for")
        branch = Branch(
            whole.tokens[trunk:],
            int(positions_of(whole)[trunk].max()),
            most,
            wanted.stops | frozenset(self.engine.stop_tokens),
            wanted.sampling,
            top=wanted.top,
        )
        branches = [dataclasses.replace(branch, sample=number) for number in range(wanted.samples)]
        tree = with_trunk(
            whole, trunk, branches, encoder, plans, lambda: example, _key(whole.tokens[:trunk], example, conversation.low)
        )
        cut = lambda: geometry.of_group(media_tiles(example, geometry), plans, tree.visual, trunk)
        return _with_media(tree, cut)

    def _trunk(self, whole: Tokens, most: int | None) -> int:
        """The length of a chat's trunk. It ends at the last medium, so that all questions about a picture share it, if the rest
        and the new tokens (without a limit: as many again) fit behind it; else at the last token but one."""
        all_but_one, media = trunk_length([whole]), np.flatnonzero(whole.is_visual)
        if not len(media):
            return all_but_one
        shared = int(media[-1]) + 1
        behind = len(whole.tokens) - shared
        return shared if behind + (behind if most is None else most) <= self.longest_branch else all_but_one

    def _room(self, tokens: int, trunk: int) -> int:
        """New tokens that there is room for behind a prompt of so many tokens."""
        positions = self.engine.config.text.max_positions
        room = self.longest_branch - (tokens - trunk)
        return room if positions is None else min(room, positions - tokens)

    def rewards_tree(self, conversation: Conversation, asked: Rewards) -> Tree:
        """The tree of a rewards request: `asked.samples` branches for each response. ApiError as in `chat_tree`."""
        given = asked.critiques or (None,) * len(asked.responses)
        responses = [Response(text, critique=critique) for text, critique in zip(asked.responses, given, strict=True)]
        return self.record_tree(conversation.question(responses), asked)

    def record_tree(self, example: Example, asked: Rewards) -> Tree:
        """The tree of the responses of a record.

        Its trunk ends where the responses begin, so that later requests about the record find it in the cache, whatever their
        responses are, one or many. What has no room behind it may have in common what the trunk has room for.
        """
        try:
            tree = self._judging_tree(example, asked, most_trunk=self._before_responses(example, asked))
            if not self._has_room(tree) and self._has_room(other := self._judging_tree(example, asked)):
                tree = other
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from None
        if not self._has_room(tree):
            trunk, longest = len(tree.tokens), _longest(tree)
            found = f"the prompt has {trunk} tokens, and the longest response with its critique {longest} behind it"
            raise self._too_long(found, param="responses" if trunk <= self.longest_trunk else "messages")
        tree = dataclasses.replace(tree, key=_key(tree.tokens, example))
        return _with_media(tree, tree.media)

    def _has_room(self, tree: Tree) -> bool:
        return len(tree.tokens) <= self.longest_trunk and _longest(tree) <= self.longest_branch

    def _judging_tree(self, example: Example, asked: Rewards, most_trunk: int | None = None) -> Tree:
        if asked.critique == "written":
            return self._critiques_tree(example, asked, most_trunk)
        encoder = self.engine.encoder("uncritiqued" if asked.critique == "none" else "critique")
        return scored_tree(example, encoder, most_trunk=most_trunk)

    def _before_responses(self, example: Example, asked: Rewards) -> int:
        """The number of tokens before a response, which two that begin differently have in common."""
        two = self.with_responses(example, ("a", "b"), ("a", "b"))
        return len(self._judging_tree(two, dataclasses.replace(asked, samples=1)).tokens)

    def with_responses(self, example: Example, responses: Sequence[str], critiques: Sequence[str | None]) -> Example:
        """A record's prompt and media with other responses."""
        made = tuple(Response(text, critique=critique) for text, critique in zip(responses, critiques, strict=True))
        return dataclasses.replace(example, record=dataclasses.replace(example.record, responses=made))

    def token_bytes(self, token: int) -> bytes:
        return self._bytes(token)

    def plain(self, text: str) -> str:
        """A response without the control tokens that a trainer's decoding has left at its end."""
        ends = [self.engine.tokenizer.convert_ids_to_tokens(number) for number in self.engine.stop_tokens]
        while end := next((end for end in ends if end and text.rstrip("\n").endswith(end)), None):
            text = text.rstrip("\n").removesuffix(end)
        return text

    def question_and_response(self, text: str) -> tuple[str, str]:
        """The two of a conversation that the chat template has written. ApiError for any other text.

        A response that holds the beginning of another answer is refused: it may be a conversation of several turns.
        """
        before, between, closing = self._frame
        question, found, response = text.removeprefix(before).partition(between)
        response = response.rstrip("\n")
        if not (found and text.startswith(before) and response.endswith(closing)) or between in response:
            raise ApiError(
                400,
                "input: it must be one question and its answer as the model's chat template writes them; or send messages",
                param="input",
            )
        return question, response.removesuffix(closing)

    @functools.cached_property
    def _frame(self) -> tuple[str, str, str]:
        """What the chat template has before a question, between it and the answer, and behind that, but for a line break."""
        question, answer = "\ue000", "\ue001"
        pieces = find_template(self.engine.template, self.engine.tokenizer)(question, 0, answer)
        whole = "".join(piece.token if isinstance(piece, Special) else piece.text for piece in pieces)
        before, _, rest = whole.partition(question)
        between, _, behind = rest.partition(answer)
        return before, between, behind.rstrip("\n")

    def _critiques_tree(self, example: Example, asked: Rewards, most_trunk: int | None) -> Tree:
        most = min(USUAL_CRITIQUE, self.longest_branch // 2) if asked.most is None else asked.most
        wanted = self.engine.asked(most, sampling=asked.sampling, samples=asked.samples, rewarded=self._of_text)
        prompts = [Prompt(example, response) for response in example.record.responses]
        tree = make_tree(prompts, self._encoder, wanted, most_trunk=most_trunk)
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
        found = self._of_text(RankedRecord("closing", "", ()), Response(""), (), self._encoder.tokenizer.text("a")[0])
        return found.tokens[int(np.flatnonzero(found.is_target)[-1]) :]

    def _too_long(self, found: str, param: str = "messages") -> ApiError:
        room = f"{self.longest_trunk} tokens of a prompt and {self.longest_branch} behind it (--prompt-tokens, --new-tokens)"
        return ApiError(400, f"{found}; this server has room for {room}", param=param, code="context_length_exceeded")


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


def _with_media(tree: Tree, cut: Callable[[], Media] | None) -> Tree:
    """The tree with its media cut into tiles, so that the lanes' thread decodes nothing. ApiError for a broken picture, and for
    frames of a video that do not belong together."""
    if tree.media is None or cut is None:
        return tree
    try:
        tiles = cut()
    except UnlikeFrames as error:
        raise ApiError(400, f"messages: {error}", param="messages") from None
    except UserError:
        raise media.unreadable("messages") from None
    return dataclasses.replace(tree, media=lambda: tiles)


def _longest(tree: Tree) -> int:
    return max(branch.length for branch in tree.branches)


def _key(tokens: np.ndarray, example: Example, low: bool = False) -> Hashable:
    """Equal for trunks with equal tokens and media."""
    digest = hashlib.sha256(f"{len(example.images)} {len(example.frames)} {low}\n".encode())
    digest.update(np.ascontiguousarray(tokens, np.int32).tobytes())
    for data in (*example.images, *example.frames):
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def spread(rewards: Sequence[float]) -> float | None:
    """The standard deviation of a response's rewards; None of a single one."""
    return statistics.stdev(rewards) if len(rewards) > 1 else None
