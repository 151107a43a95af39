"""A ranking group as the model sees it: tokens, visual plan and tiles. Pure functions of one example; runs in data workers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.examples import Example, Layout
from mmrlhf_jax.data.images import decode_image, image_size
from mmrlhf_jax.data.pair_margins import pair_margins
from mmrlhf_jax.data.rows import Budget, EncodedGroup
from mmrlhf_jax.data.templates import Piece, Template, critique_prompt, find_template
from mmrlhf_jax.data.tokens import Conversation, PieceTokenizer, TokenTree, cut, token_tree
from mmrlhf_jax.models.llava_onevision import images, vision_plan
from mmrlhf_jax.models.llava_onevision.vision_plan import Size, VisionGeometry, VisualPlan
from mmrlhf_jax.records import RankedRecord, Response, choose_pairs, tied_pairs


class Limit(NamedTuple):
    """What an over-budget policy leaves of a group; 0 = all of it."""

    tiles: int = 0  # of all media together
    targets: int = 0  # of each response


NO_LIMIT = Limit()


@dataclasses.dataclass(frozen=True)
class GroupEncoder:
    """Encodes examples for one task.

    task: "answer": the conversations are (prompt, response), targets the responses. "critique": (critique prompt with
    response, critique), targets the critiques; a response without a critique is the plain (prompt, response) conversation
    with no targets (MM-RLHF `train_dpo.py`, `no_critic`). "uncritiqued": the critique prompt alone, up to where the critique
    would begin (MM-RLHF `eval_mm_reward_bench.py`, `wo_critic`).
    learn: which responses a supervised objective learns: all, or only the best-ranked ("best").
    ties: whether tied pairs are there as well (of weight 0 for whoever wants strictly ordered ones).
    """

    tokenizer: PieceTokenizer
    geometry: VisionGeometry
    template: str = "qwen_1_5"
    task: Literal["answer", "critique", "uncritiqued"] = "answer"
    pairs: str | int = "all"
    weighting: Literal["pair", "group"] = "pair"
    learn: Literal["all", "best"] = "all"
    ties: bool = False

    @property
    def fingerprint(self) -> str:
        """Changes with everything that changes an encoded group, the tokenizer's contents included."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("tokenizer", "geometry")}
        settings["geometry"] = dataclasses.asdict(self.geometry)
        settings["tokenizer"] = self.tokenizer.tokenizer.backend_tokenizer.to_str()
        if self.template == "checkpoint":
            settings["chat_template"] = self.tokenizer.tokenizer.chat_template
        return hashlib.sha256(strict_json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _template(self) -> Template:
        return find_template(self.template, self.tokenizer.tokenizer)

    def conversation(self, record: RankedRecord, response: Response, media_tokens: Sequence[int]) -> Conversation:
        """One complete conversation, as an unshared trainer would have it."""
        template, media, prompt = self._template, len(media_tokens), record.prompt_text()
        if self.task == "answer":
            return self.tokenizer.conversation(template(prompt, media, response.text), media_tokens)
        if self.task == "uncritiqued":
            return self.tokenizer.conversation(self.open_pieces(record, response, media), media_tokens)
        if response.critique is None:
            tokens, is_target = self.tokenizer.conversation(template(prompt, media, response.text), media_tokens)
            return Conversation(tokens, np.zeros_like(is_target))
        pieces = template(critique_prompt(prompt, response.text), media, response.critique)
        return self.tokenizer.conversation(pieces, media_tokens)

    def open_pieces(self, record: RankedRecord, response: Response | None, media: int) -> list[Piece]:
        """The conversation up to where the model writes: the answer, or the critique of `response`."""
        prompt = record.prompt_text()
        if response is not None:
            prompt = critique_prompt(prompt, response.text)
        return self._template(prompt, media, None)

    def tree(self, record: RankedRecord, media_tokens: Sequence[int], most_targets: int = 0) -> TokenTree:
        conversations = [self.conversation(record, response, media_tokens) for response in record.responses]
        return token_tree([cut(conversation, most_targets) if most_targets else conversation for conversation in conversations])

    def visual_plan(self, plans: Sequence[VisualPlan], tree: TokenTree) -> VisualPlan:
        """What every visual slot of the tree is made of, in the order of the slots.

        Media stand in the trunk, once, unless conversations differ before them: a critique's prompt and the plain one of a
        response without a critique do, where the question has its media inside the text. Every branch then has its own
        slots for the same tiles.
        """
        plan = vision_plan.join(plans) if plans else empty_plan()
        slots = np.flatnonzero(tree.tokens == self.tokenizer.image_token)
        if len(slots) == plan.tokens:
            return plan
        shared = int((slots < tree.trunk).sum())
        own = np.arange(len(slots) - shared) % (plan.tokens - shared)
        numbers = np.concatenate([np.arange(shared), shared + own])
        return dataclasses.replace(plan, taps=plan.taps[numbers], weights=plan.weights[numbers])

    def chosen_pairs(self, record: RankedRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs, their weights, and their weights as ties: int32[p, 2], float32[p], float32[p]."""
        strict = choose_pairs(record.pairs(), self.pairs)
        ties = tied_pairs([r.rank for r in record.responses]) if self.ties else []
        kinds = [np.repeat([1.0, 0.0], [len(strict), len(ties)]), np.repeat([0.0, 1.0], [len(strict), len(ties)])]
        if self.weighting == "group":
            kinds = [kind / max(kind.sum(), 1) for kind in kinds]
        return np.asarray([*strict, *ties], np.int32).reshape(-1, 2), *(kind.astype(np.float32) for kind in kinds)

    def margins(self, record: RankedRecord, source: str) -> np.ndarray:
        """float32[p]: δ of every pair that is chosen, of the numbers stored with the pair or of the rewards; NaN = none."""
        pairs, _, _ = self.chosen_pairs(record)
        if source == "stored":
            return pair_margins(record, pairs)
        rewards = _rewards(record)
        return rewards[pairs[:, 0]] - rewards[pairs[:, 1]]

    def measure(self, record: RankedRecord, layout: Layout, limit: Limit = NO_LIMIT) -> np.ndarray:
        """What the group takes of a row, in the order of `Budget`."""
        plans = media_plans(layout, self.geometry, limit.tiles)
        tree = self.tree(record, [p.tokens for p in plans], limit.targets)
        size = Budget(
            slots=len(tree.tokens),
            tiles=sum(p.tiles for p in plans),
            visual=int((tree.tokens == self.tokenizer.image_token).sum()),
            targets=len(tree.targets),
            responses=len(record.responses),
            pairs=len(self.chosen_pairs(record)[0]),
        )
        return size.vector

    def encode(self, example: Example, first_response: int = 0, limit: Limit = NO_LIMIT) -> EncodedGroup:
        """`first_response` is the number of the group's first response in the whole data set."""
        record = example.record
        plans = media_plans(media_layout(example), self.geometry, limit.tiles)
        tree = self.tree(record, [p.tokens for p in plans], limit.targets)
        pairs, pair_weights, tie_weights = self.chosen_pairs(record)
        count = len(record.responses)
        ranks = [r.rank for r in record.responses]
        best = min((r for r in ranks if r is not None), default=None)
        learnt = [self.learn == "all" or (rank is not None and rank == best) for rank in ranks]
        return EncodedGroup(
            tree=tree,
            plan=self.visual_plan(plans, tree),
            tiles=media_tiles(example, self.geometry, limit.tiles),
            image_slots=np.flatnonzero(tree.tokens == self.tokenizer.image_token).astype(np.int32),
            pairs=pairs,
            pair_weights=pair_weights,
            tie_weights=tie_weights,
            pair_margins=pair_margins(record, pairs),
            response_weights=np.asarray(learnt, np.float32),
            rewards=_rewards(record),
            reference_logps=np.full(count, np.nan, np.float32),
            response_ids=np.arange(first_response, first_response + count, dtype=np.int32),
        )


def _rewards(record: RankedRecord) -> np.ndarray:
    """float32[K]: of every response, NaN = none."""
    return np.asarray([np.nan if r.reward is None else r.reward for r in record.responses], np.float32)


def media_layout(example: Example) -> Layout:
    """Sizes of an example's media, from headers."""
    where = f"record {example.record.id!r}"
    sizes = [image_size(data, f"{where}, image {i}") for i, data in enumerate(example.images)]
    return Layout(tuple(sizes), len(example.frames))


def media_plans(layout: Layout, geometry: VisionGeometry, most_tiles: int = 0) -> list[VisualPlan]:
    """One plan per medium: the images in order, or the video as one."""
    if layout.frames:
        return [vision_plan.plan_video(min(layout.frames, most_tiles or layout.frames), geometry)]
    return vision_plan.plan_images(layout.images, within(geometry, most_tiles)) if layout.images else []


def media_tiles(example: Example, geometry: VisionGeometry, most_tiles: int = 0) -> np.ndarray:
    """uint8[t, H, H, 3]: the tiles of all media, in the order of their plans."""
    where = f"record {example.record.id!r}"
    if example.frames:
        kept = frame_numbers(len(example.frames), most_tiles)
        return images.cut_frames([decode_image(example.frames[i], f"{where}, frame {i}") for i in kept], geometry)
    decoded = [decode_image(data, f"{where}, image {i}") for i, data in enumerate(example.images)]
    if not decoded:
        return np.zeros((0, geometry.image_size, geometry.image_size, 3), np.uint8)
    geometry = within(geometry, most_tiles)
    anyres = geometry.anyres and len(decoded) == 1  # several images in a prompt are plain square tiles
    return np.concatenate([images.cut_tiles(image, geometry, anyres=anyres) for image in decoded])


def frame_numbers(frames: int, most: int) -> list[int]:
    """The frames of a video that are kept: all, or `most` evenly spaced ones."""
    return np.linspace(0, frames - 1, min(frames, most or frames), dtype=int).tolist()


@functools.cache
def within(geometry: VisionGeometry, most_tiles: int) -> VisionGeometry:
    """The geometry without canvases on which an image would take more than `most_tiles` tiles (0 = any number)."""
    if not most_tiles or not geometry.anyres:
        return geometry
    pinpoints = tuple(p for p in geometry.pinpoints if canvas_tiles(p, geometry) <= most_tiles)
    return dataclasses.replace(geometry, pinpoints=pinpoints) if pinpoints else dataclasses.replace(geometry, anyres=False)


def canvas_tiles(pinpoint: Size, geometry: VisionGeometry) -> int:
    """Tiles of an image on a canvas: the squeezed whole, and the grid."""
    return 1 + (pinpoint[0] // geometry.image_size) * (pinpoint[1] // geometry.image_size)


def fewer_tiles(layout: Layout, geometry: VisionGeometry) -> list[int]:
    """Numbers of tiles that the media can be brought down to, most first. Several images have one each, and no fewer."""
    if layout.frames:
        return list(range(layout.frames - 1, 0, -1))
    if len(layout.images) != 1 or not geometry.anyres:
        return []
    now = sum(plan.tiles for plan in media_plans(layout, geometry))
    return sorted({n for p in geometry.pinpoints if (n := canvas_tiles(p, geometry)) < now} | {1}, reverse=True)


def empty_plan() -> VisualPlan:
    return VisualPlan(tiles=0, taps=np.zeros((0, 4), np.int32), weights=np.zeros((0, 4), np.float32))
