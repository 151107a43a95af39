"""The row batch: the only thing a train step sees, and how encoded groups are laid into one row of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmrlhf_jax.data.tokens import TokenTree
from mmrlhf_jax.models.llava_onevision.vision_plan import NEWLINE, VisualPlan


class RowBatch(NamedTuple):
    """B rows, S slots, T tiles, V visual slots, M targets, R responses, P pairs. One row has the same fields without B.

    Unused entries: padding slots see only themselves; `visual_slots`, `ends` = S; `responses` = R; weights 0.
    """

    tokens: np.ndarray  # int32[B, S]
    positions: np.ndarray  # int32[B, S]
    visible_until: np.ndarray  # int32[B, S]: q sees k <=> k <= q < visible_until[k]
    tiles: np.ndarray  # uint8[B, T, H, H, 3]
    visual_slots: np.ndarray  # int32[B, V]: where each visual token goes in S
    visual_taps: np.ndarray  # int32[B, V, 4] into the row's [T * patches + 1] features, newline last
    visual_weights: np.ndarray  # float32[B, V, 4]
    targets: np.ndarray  # int32[B, M]
    predictors: np.ndarray  # int32[B, M]: the slot whose hidden state predicts the target
    responses: np.ndarray  # int32[B, M]: which response the target belongs to
    ends: np.ndarray  # int32[B, R]: the slot of the response's last token, where a score head reads
    response_weights: np.ndarray  # float32[B, R]: 1 for responses a supervised objective learns
    pairs: np.ndarray  # int32[B, P, 2]: (chosen, rejected)
    pair_weights: np.ndarray  # float32[B, P]: 0 for tied pairs
    tie_weights: np.ndarray  # float32[B, P]: 0 for strictly ordered pairs
    pair_margins: np.ndarray  # float32[B, P]: a number stored with the pair itself (upstream's ls_factor), NaN = none
    rewards: np.ndarray  # float32[B, R]: NaN = not scored
    reference_logps: np.ndarray  # float32[B, R]: NaN = not computed
    response_ids: np.ndarray  # int32[B, R]: number of the response in the data set, -1 = unused; says whose figure is whose


class EncodedGroup(NamedTuple):
    """One ranking group, tokenised and cut into tiles, before it has a place in a row."""

    tree: TokenTree
    plan: VisualPlan
    tiles: np.ndarray  # uint8[t, H, H, 3]
    image_slots: np.ndarray  # int32[v]: slots of the tree that visual tokens fill, in the plan's order
    pairs: np.ndarray  # int32[p, 2]
    pair_weights: np.ndarray  # float32[p]
    tie_weights: np.ndarray  # float32[p]
    pair_margins: np.ndarray  # float32[p]
    response_weights: np.ndarray  # float32[K]
    rewards: np.ndarray  # float32[K]
    reference_logps: np.ndarray  # float32[K]
    response_ids: np.ndarray  # int32[K]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The static size of a row, per resource."""

    slots: int
    tiles: int
    visual: int
    targets: int
    responses: int
    pairs: int

    @property
    def vector(self) -> np.ndarray:
        return np.asarray(dataclasses.astuple(self), np.int64)

    @staticmethod
    def names() -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(Budget))


def assemble_row(groups: Sequence[EncodedGroup], budget: Budget, geometry) -> RowBatch:
    """Lay whole groups one after the other into a row of static size. The groups must fit (the planner saw to it)."""
    row = empty_row(budget, geometry)
    slot = tile = visual = target = response = pair = 0
    for group in groups:
        tree, n = group.tree, len(group.tree.tokens)
        here = slice(slot, slot + n)
        row.tokens[here] = tree.tokens
        row.positions[here] = tree.positions
        row.visible_until[here] = tree.visible_until + slot

        row.tiles[tile : tile + len(group.tiles)] = group.tiles
        v = slice(visual, visual + len(group.image_slots))
        newline = budget.tiles * geometry.patches
        row.visual_slots[v] = group.image_slots + slot
        row.visual_taps[v] = np.where(group.plan.taps == NEWLINE, newline, group.plan.taps + tile * geometry.patches)
        row.visual_weights[v] = group.plan.weights

        m = slice(target, target + len(tree.targets))
        row.targets[m] = tree.targets
        row.predictors[m] = tree.predictors + slot
        row.responses[m] = tree.responses + response

        r = slice(response, response + len(tree.ends))
        row.ends[r] = tree.ends + slot
        row.response_weights[r] = group.response_weights
        row.rewards[r] = group.rewards
        row.reference_logps[r] = group.reference_logps
        row.response_ids[r] = group.response_ids

        p = slice(pair, pair + len(group.pairs))
        row.pairs[p] = group.pairs + response
        row.pair_weights[p] = group.pair_weights
        row.tie_weights[p] = group.tie_weights
        row.pair_margins[p] = group.pair_margins

        slot, tile, visual = slot + n, tile + len(group.tiles), v.stop
        target, response, pair = m.stop, r.stop, p.stop
    return row


def empty_row(budget: Budget, geometry) -> RowBatch:
    """A row that contributes nothing: every slot is padding, every weight 0."""
    side = geometry.image_size
    return RowBatch(
        tokens=np.zeros(budget.slots, np.int32),
        positions=np.zeros(budget.slots, np.int32),
        visible_until=np.arange(1, budget.slots + 1, dtype=np.int32),
        tiles=np.zeros((budget.tiles, side, side, 3), np.uint8),
        visual_slots=np.full(budget.visual, budget.slots, np.int32),
        visual_taps=np.zeros((budget.visual, 4), np.int32),
        visual_weights=np.zeros((budget.visual, 4), np.float32),
        targets=np.zeros(budget.targets, np.int32),
        predictors=np.zeros(budget.targets, np.int32),
        responses=np.full(budget.targets, budget.responses, np.int32),
        ends=np.full(budget.responses, budget.slots, np.int32),
        response_weights=np.zeros(budget.responses, np.float32),
        pairs=np.zeros((budget.pairs, 2), np.int32),
        pair_weights=np.zeros(budget.pairs, np.float32),
        tie_weights=np.zeros(budget.pairs, np.float32),
        pair_margins=np.full(budget.pairs, np.nan, np.float32),
        rewards=np.full(budget.responses, np.nan, np.float32),
        reference_logps=np.full(budget.responses, np.nan, np.float32),
        response_ids=np.full(budget.responses, -1, np.int32),
    )


def stack_rows(rows: Sequence[RowBatch]) -> RowBatch:
    return RowBatch(*(np.stack(field) for field in zip(*rows, strict=True)))


def group_size(group: EncodedGroup) -> np.ndarray:
    """What a group takes of every resource of a `Budget`, in its order."""
    tree = group.tree
    sizes = (len(tree.tokens), len(group.tiles), len(group.image_slots), len(tree.targets), len(tree.ends), len(group.pairs))
    return np.asarray(sizes, np.int64)


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below `value`: rows, slots and targets come in such sizes."""
    return -(-value // multiple) * multiple
