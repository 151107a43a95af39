"""Encodes a ranking group as tokens, visual plan and tiles: pure functions of one example, run in data workers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.images import decode_image, image_size
from mmrlhf_jax.data.pair_margins import margins_of_pairs, stored_margins
from mmrlhf_jax.data.rows import Budget, EncodedGroup
from mmrlhf_jax.data.templates import Template, critique_prompt, find_template
from mmrlhf_jax.data.tokens import Conversation, PieceTokenizer, cut, token_tree
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.geometry import Geometry
from mmrlhf_jax.models.media import VisualPlan
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.pieces import Piece
from mmrlhf_jax.records import RankedRecord, Response, choose_pairs, tied_pairs

if TYPE_CHECKING:
    from mmrlhf_jax.models.family import ModelConfig


class Limit(NamedTuple):
    """Limits to which an over-budget policy has reduced a group; 0 = no limit."""

    tiles: int = 0  # of all media together
    targets: int = 0  # target tokens of each response


NO_LIMIT = Limit()

UNCHANGING = ("tokenizer", "geometry", "max_positions")  # fields that the fingerprint has in another form or does not need


@dataclasses.dataclass(frozen=True)
class GroupEncoder:
    """Encodes examples for one task.

    task: with "answer" conversations are (prompt, response), and responses are the targets. With "critique" they are (critique
    prompt with response, critique), and critiques are the targets; a response without a critique becomes the plain (prompt,
    response) conversation without targets (MM-RLHF `train_dpo.py`, `no_critic`). With "uncritiqued" they are the critique
    prompt alone, up to where the critique would begin (MM-RLHF `eval_mm_reward_bench.py`, `wo_critic`). learn: which responses
    a supervised objective learns: all, or only the best-ranked ("best"). ties: tied pairs are included, with `pair_weights` 0.
    max_positions: the most tokens that a conversation may have; None: no limit. `measure` accepts longer ones, so that
    over-budget policies can cut them or leave them out; `encode` refuses them.
    """

    tokenizer: PieceTokenizer
    geometry: Geometry
    template: str
    task: Literal["answer", "critique", "uncritiqued"] = "answer"
    pairs: str | int = "all"
    weighting: Literal["pair", "group"] = "pair"
    learn: Literal["all", "best"] = "all"
    ties: bool = False
    max_positions: int | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of everything that an encoded group depends on, including the tokenizer's contents."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in UNCHANGING}
        settings["geometry"] = self.geometry.settings()
        settings["tokenizer"] = self.tokenizer.tokenizer.backend_tokenizer.to_str()
        if self.template == "checkpoint":
            settings["chat_template"] = self.tokenizer.tokenizer.chat_template
        return hashlib.sha256(strict_json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _template(self) -> Template:
        return find_template(self.template, self.tokenizer.tokenizer, self.tokenizer.media_tags)

    def plans(self, record: RankedRecord, layout: Layout, limit: Limit = NO_LIMIT) -> list[VisualPlan]:
        """The plans of a record's media. UserError, naming the record, for media that the model cannot take."""
        try:
            return self.geometry.plans(layout.images, layout.video, limit.tiles)
        except UserError as error:
            raise UserError(f"record {record.id!r}: {error}") from None

    def conversation(self, record: RankedRecord, response: Response, plans: Sequence[VisualPlan]) -> Conversation:
        """One complete conversation, as a trainer without shared prefixes would tokenise it."""
        template, media, prompt = self._template, len(plans), record.prompt_text()
        if self.task == "answer":
            return self.tokens(template(prompt, media, response.text), plans)
        if self.task == "uncritiqued":
            return self.tokens(self.open_pieces(record, response, media), plans)
        if response.critique is None:
            plain = self.tokens(template(prompt, media, response.text), plans)
            return plain._replace(is_target=np.zeros_like(plain.is_target))
        return self.tokens(template(critique_prompt(prompt, response.text), media, response.critique), plans)

    def tokens(self, pieces: Sequence[Piece], plans: Sequence[VisualPlan]) -> Conversation:
        """Tokenise pieces; media pieces become the tokens of their `plans`."""
        return self.tokenizer.conversation(pieces, [plan.pieces for plan in plans])

    def open_pieces(self, record: RankedRecord, response: Response | None, media: int) -> list[Piece]:
        """The conversation up to where the model starts to write the answer or, with a `response`, its critique."""
        prompt = record.prompt_text()
        if response is not None:
            prompt = critique_prompt(prompt, response.text)
        return self._template(prompt, media, None)

    def conversations(self, record: RankedRecord, plans: Sequence[VisualPlan], most_targets: int = 0) -> list[Conversation]:
        """The conversation of every response; `most_targets` cuts each response's targets (0 = no limit)."""
        conversations = [self.conversation(record, response, plans) for response in record.responses]
        return [cut(conversation, most_targets) for conversation in conversations] if most_targets else conversations

    def beyond_positions(self, record: RankedRecord, layout: Layout, slots: int, limit: Limit = NO_LIMIT) -> int:
        """The number of tokens of the group's longest conversation if it exceeds `max_positions`, otherwise 0.

        `slots` is the measured size of the group. No conversation is longer, so that groups within `max_positions` are not
        tokenised again.
        """
        if self.max_positions is None or slots <= self.max_positions:
            return 0
        plans = self.plans(record, layout, limit)
        longest = _longest(self.conversations(record, plans, limit.targets))
        return longest if longest > self.max_positions else 0

    def check_positions(self, record: RankedRecord, tokens: int, new: int = 0) -> None:
        """UserError if a conversation of so many tokens, plus `new` tokens to be generated, exceeds `max_positions`."""
        if self.max_positions is None or tokens + new <= self.max_positions:
            return
        what = f"a prompt of {tokens} tokens with {new} new tokens" if new else f"a conversation of {tokens} tokens"
        raise UserError(
            f"record {record.id!r}: {what} exceeds the {self.max_positions} positions up to which this model's rotary"
            " embeddings are plain (rope_type dynamic); longer conversations are not supported"
        )

    def chosen_pairs(self, record: RankedRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pairs int32[p, 2], their weights float32[p], their weights as ties float32[p]); tied pairs only with `ties`."""
        strict = choose_pairs(record.pairs(), self.pairs)
        ties = tied_pairs([r.rank for r in record.responses]) if self.ties else []
        kinds = [np.repeat([1.0, 0.0], [len(strict), len(ties)]), np.repeat([0.0, 1.0], [len(strict), len(ties)])]
        if self.weighting == "group":
            kinds = [kind / max(kind.sum(), 1) for kind in kinds]
        return np.asarray([*strict, *ties], np.int32).reshape(-1, 2), *(kind.astype(np.float32) for kind in kinds)

    def margins(self, record: RankedRecord, source: str) -> np.ndarray:
        """float64[p]: δ of every chosen pair, as `margins_of_pairs`."""
        return margins_of_pairs(record, self.chosen_pairs(record)[0], source)

    def measure(self, record: RankedRecord, layout: Layout, limit: Limit = NO_LIMIT) -> np.ndarray:
        """int64[6]: how much of each resource of `Budget` the group needs, in its order."""
        plans = self.plans(record, layout, limit)
        tree = token_tree(self.conversations(record, plans, limit.targets))
        size = Budget(
            slots=len(tree.tokens),
            tiles=sum(p.tiles for p in plans),
            visual=len(tree.visual),
            targets=len(tree.targets),
            responses=len(record.responses),
            pairs=len(self.chosen_pairs(record)[0]),
        )
        return size.vector

    def encode(self, example: Example, first_response: int = 0, limit: Limit = NO_LIMIT) -> EncodedGroup:
        """Encode an example. `first_response` is the number of its first response in the whole data set.

        UserError if a conversation exceeds `max_positions`.
        """
        record = example.record
        layout = media_layout(example)
        plans = self.plans(record, layout, limit)
        conversations = self.conversations(record, plans, limit.targets)
        self.check_positions(record, _longest(conversations))
        tree = token_tree(conversations)
        tiles = media_tiles(example, self.geometry, limit.tiles)
        pairs, pair_weights, tie_weights = self.chosen_pairs(record)
        count = len(record.responses)
        ranks = [r.rank for r in record.responses]
        best = min((r for r in ranks if r is not None), default=None)
        learnt = [self.learn == "all" or (rank is not None and rank == best) for rank in ranks]
        return EncodedGroup(
            tree=tree,
            media=self.geometry.of_group(tiles, plans, tree.visual, tree.trunk),
            pairs=pairs,
            pair_weights=pair_weights,
            tie_weights=tie_weights,
            pair_margins=stored_margins(record, pairs).astype(np.float32),
            response_weights=np.asarray(learnt, np.float32),
            rewards=_rewards(record),
            reference_logps=np.full(count, np.nan, np.float32),
            response_ids=np.arange(first_response, first_response + count, dtype=np.int32),
        )


def make_encoder(tokenizer: Any, model: ModelConfig, template: str | None = None, **settings: Any) -> GroupEncoder:
    """The encoder for a model and tokenizer; `template` defaults to the family's. `settings` are fields of `GroupEncoder`."""
    family = family_of(model)
    axes = model.geometry.position_axes
    pieces = PieceTokenizer(tokenizer, model.image_token, family.media_tags, family.media_tokens, axes)
    settings = {"max_positions": model.text.max_positions} | settings
    return GroupEncoder(pieces, model.geometry, template or family.template, **settings)


def _longest(conversations: Sequence[Conversation]) -> int:
    """The number of tokens of the longest conversation."""
    return max(len(conversation.tokens) for conversation in conversations)


def _rewards(record: RankedRecord) -> np.ndarray:
    """float32[K]: the reward of every response, NaN = none."""
    return np.asarray([np.nan if r.reward is None else r.reward for r in record.responses], np.float32)


def media_layout(example: Example) -> Layout:
    """The sizes of an example's media, read from image headers, and what it knows of its video."""
    where = f"record {example.record.id!r}"
    sizes = [image_size(data, f"{where}, image {i}") for i, data in enumerate(example.images)]
    return Layout(tuple(sizes), video_of(example))


def video_of(example: Example) -> VideoLayout | None:
    """The layout of an example's video; None if it has none."""
    if not example.frames:
        return None
    video = example.video or VideoLayout(len(example.frames))
    if video.size is not None:
        return video
    return dataclasses.replace(video, size=image_size(example.frames[0], f"record {example.record.id!r}, frame 0"))


def media_tiles(example: Example, geometry: Geometry, most_tiles: int = 0) -> np.ndarray:
    """uint8[t, ...]: the pixels of all media, tile by tile (`Geometry.cut_images`), in the order of their plans."""
    where = f"record {example.record.id!r}"
    if (video := video_of(example)) is not None:
        kept = geometry.frame_numbers(video, most_tiles)
        frames = [decode_image(example.frames[i], f"{where}, frame {i}") for i in kept]
        return geometry.cut_frames(frames, video, most_tiles)
    decoded = [decode_image(data, f"{where}, image {i}") for i, data in enumerate(example.images)]
    return geometry.cut_images(decoded, most_tiles)
