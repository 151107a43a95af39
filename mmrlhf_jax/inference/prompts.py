"""Prompts to rows: prompts about the same media share a row, in which their common prefix is stored and computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mmrlhf_jax.data.encode import GroupEncoder, media_layout, media_tiles
from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.rows import round_up, stack_rows
from mmrlhf_jax.data.tokens import TokenTree, token_tree
from mmrlhf_jax.inference.generate import PromptRows
from mmrlhf_jax.models.media import Tiles, VisualPlan
from mmrlhf_jax.records import Response

# Static shapes of generation are rounded up to multiples of these (branches and tiles to powers of two), so that few programs
# are compiled.
SLOT_BUCKET, VISUAL_BUCKET = 64, 128
MOST_BRANCHES = 8


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt for the model: the example's own prompt or, with a `response`, the prompt for a critique of that response."""

    example: Example
    response: Response | None = None


@dataclasses.dataclass(frozen=True)
class PromptTree:
    """Prompts about one example, laid out as one tree. `numbers` are their indices in the list of prompts, `plans` the visual
    plans of the example's media."""

    numbers: tuple[int, ...]
    tree: TokenTree
    plans: tuple[VisualPlan, ...]

    @property
    def branches(self) -> int:
        """The number of branches of its row, including padding: a power of two."""
        return power_of_two(len(self.numbers))


def prompt_trees(prompts: Sequence[Prompt], encoder: GroupEncoder) -> list[PromptTree]:
    """Group prompts into trees: only adjacent prompts about the same example share one."""
    trees = []
    for numbers, same in _neighbours(prompts):
        layout = media_layout(same[0].example)
        plans = encoder.geometry.plans(layout.images, layout.frames)
        pieces = [encoder.open_pieces(p.example.record, p.response, len(plans)) for p in same]
        trees.append(PromptTree(numbers, token_tree([encoder.tokens(each, plans) for each in pieces]), tuple(plans)))
    return trees


def prompt_rows(
    trees: Sequence[PromptTree], examples: Sequence[Example], encoder: GroupEncoder, rows: int
) -> tuple[PromptRows, Tiles | None]:
    """(`rows` rows of bucketed static shape, their media or None). Missing rows are filled with the first tree.

    `examples[i]` has the media of `trees[i]`. All trees must have the same `branches`.
    """
    geometry = encoder.geometry
    tiles = [media_tiles(example, geometry) for example in examples]
    media = [geometry.of_group(t, p.plans, p.tree.visual, p.tree.trunk) for t, p in zip(tiles, trees, strict=True)]
    trees, media = (list(x) + [x[0]] * (rows - len(x)) for x in (trees, media))
    slots = round_up(max(len(t.tree.tokens) for t in trees), SLOT_BUCKET)
    visual_count = round_up(max(len(m.slots) for m in media), VISUAL_BUCKET)
    tile_count = power_of_two(max(m.units for m in media))

    made = PromptRows(
        tokens=np.zeros((rows, slots), np.int32),
        positions=np.zeros((rows, slots, *trees[0].tree.positions.shape[1:]), np.int32),
        visible_until=np.tile(np.arange(1, slots + 1, dtype=np.int32), (rows, 1)),  # padding attends only to itself
        ends=np.zeros((rows, trees[0].branches), np.int32),
    )
    for row, prompt in enumerate(trees):
        tree, size = prompt.tree, len(prompt.tree.tokens)
        made.tokens[row, :size], made.positions[row, :size] = tree.tokens, tree.positions
        made.visible_until[row, :size] = tree.visible_until
        made.ends[row] = tree.ends[0]  # padding branches repeat the first branch
        made.ends[row, : len(tree.ends)] = tree.ends
    if tile_count == 0:
        return made, None
    placed = [geometry.empty(slots=slots, tiles=tile_count, visual=visual_count) for _ in media]
    for row, group in zip(placed, media, strict=True):
        geometry.place(row, group, slot=0, tile=0, visual=0)
    return made, stack_rows(placed)


def _neighbours(prompts: Sequence[Prompt]) -> Iterator[tuple[tuple[int, ...], list[Prompt]]]:
    """Yield (indices, prompts) of adjacent prompts about the same record and media, at most MOST_BRANCHES at a time."""
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
    """The smallest power of two that is at least `value`; 0 for 0."""
    return 1 << (value - 1).bit_length() if value else 0
