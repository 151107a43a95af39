"""Prompts to rows: prompts about the same media share a row, where their common beginning is stored and computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmrlhf_jax.data.encode import GroupEncoder, media_layout, media_plans, media_tiles
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.rows import round_up
from mmrlhf_jax.data.tokens import TokenTree, token_tree
from mmrlhf_jax.inference.generate import PromptRows
from mmrlhf_jax.models.llava_onevision.model import Visual
from mmrlhf_jax.models.llava_onevision.vision_plan import NEWLINE, VisualPlan
from mmrlhf_jax.records import Response

# Static shapes of generation are rounded up to these, so that few programs are compiled; branches and tiles to powers of two.
SLOT_BUCKET, VISUAL_BUCKET = 64, 128
MOST_BRANCHES = 8


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An example and what is asked of it: its own prompt, or (with a response) the critique of that response."""

    example: Example
    response: Response | None = None


@dataclasses.dataclass(frozen=True)
class PromptTree:
    """Prompts of one example, by their numbers, laid out as one tree."""

    numbers: tuple[int, ...]
    tree: TokenTree
    plan: VisualPlan

    @property
    def branches(self) -> int:
        """Of its row, the padding included."""
        return power_of_two(len(self.numbers))


def prompt_trees(prompts: Sequence[Prompt], encoder: GroupEncoder) -> list[PromptTree]:
    """Every prompt is in one tree; only neighbours of the same example share one."""
    trees = []
    for numbers, same in _neighbours(prompts):
        plans = media_plans(media_layout(same[0].example), encoder.geometry)
        media_tokens = [plan.tokens for plan in plans]
        pieces = [encoder.open_pieces(p.example.record, p.response, len(plans)) for p in same]
        tree = token_tree([encoder.tokenizer.conversation(piece, media_tokens) for piece in pieces])
        trees.append(PromptTree(numbers, tree, encoder.visual_plan(plans, tree)))
    return trees


def prompt_rows(trees: Sequence[PromptTree], examples: Sequence[Example], encoder: GroupEncoder, rows: int):
    """(PromptRows, Visual or None) of bucketed static shape. A short batch is filled with its first tree.

    `examples[i]` holds the media of `trees[i]`, all of which have the same `branches`.
    """
    geometry = encoder.geometry
    tiles = [media_tiles(example, geometry) for example in examples]
    trees, tiles = (list(x) + [x[0]] * (rows - len(x)) for x in (trees, tiles))
    slots = round_up(max(len(t.tree.tokens) for t in trees), SLOT_BUCKET)
    visual_count = round_up(max(t.plan.tokens for t in trees), VISUAL_BUCKET)
    tile_count = power_of_two(max(len(t) for t in tiles))

    made = PromptRows(
        tokens=np.zeros((rows, slots), np.int32),
        positions=np.zeros((rows, slots), np.int32),
        visible_until=np.tile(np.arange(1, slots + 1, dtype=np.int32), (rows, 1)),  # padding sees itself only
        ends=np.zeros((rows, trees[0].branches), np.int32),
    )
    for row, prompt in enumerate(trees):
        tree, size = prompt.tree, len(prompt.tree.tokens)
        made.tokens[row, :size], made.positions[row, :size] = tree.tokens, tree.positions
        made.visible_until[row, :size] = tree.visible_until
        made.ends[row] = tree.ends[0]  # branches of padding write what the first one writes
        made.ends[row, : len(tree.ends)] = tree.ends
    if tile_count == 0:
        return made, None
    side = geometry.image_size
    visual = Visual(
        tiles=np.zeros((rows, tile_count, side, side, 3), np.uint8),
        slots=np.full((rows, visual_count), slots, np.int32),
        taps=np.zeros((rows, visual_count, 4), np.int32),
        weights=np.zeros((rows, visual_count, 4), np.float32),
    )
    newline = tile_count * geometry.patches
    for row, prompt in enumerate(trees):
        plan, count = prompt.plan, prompt.plan.tokens
        visual.tiles[row, : len(tiles[row])] = tiles[row]
        visual.slots[row, :count] = np.flatnonzero(prompt.tree.tokens == encoder.tokenizer.image_token)
        visual.taps[row, :count] = np.where(plan.taps == NEWLINE, newline, plan.taps)
        visual.weights[row, :count] = plan.weights
    return made, visual


def _neighbours(prompts: Sequence[Prompt]) -> Iterator[tuple[tuple[int, ...], list[Prompt]]]:
    """Runs of at most MOST_BRANCHES prompts about the same record and media, with their numbers."""
    numbers: list[int] = []
    same: list[Prompt] = []
    for number in range(len(prompts)):
        prompt = prompts[number]
        if same and (len(same) == MOST_BRANCHES or _subject(prompt) != _subject(same[0])):
            yield tuple(numbers), same
            numbers, same = [], []
        numbers.append(number)
        same.append(prompt)
    if same:
        yield tuple(numbers), same


def _subject(prompt: Prompt) -> tuple:
    example = prompt.example
    return example.record.id, example.record.prompt_text(), example.images, example.frames


def power_of_two(value: int) -> int:
    """The smallest one that is not below `value`; 0 for 0."""
    return 1 << (value - 1).bit_length() if value else 0
