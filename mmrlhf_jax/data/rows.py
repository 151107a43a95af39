"""The row batch, which is the input of a train step, and how encoded groups are placed into a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mmrlhf_jax.data.tokens import TokenTree
from mmrlhf_jax.models.geometry import Geometry
from mmrlhf_jax.models.media import Media, Patches, Tiles, media_of


class RowBatch(NamedTuple):
    """B rows, S slots, T tiles, V visual slots, M targets, R responses, P pairs. One row has the same fields without B.

    Unused entries: padding slots attend only to themselves; `media.slots` and `ends` are S; `responses` is R; weights are 0.
    """

    tokens: np.ndarray  # int32[B, S]
    positions: np.ndarray  # int32[B, S], or int32[B, S, 3] for families with three axes
    visible_until: np.ndarray  # int32[B, S]: the attention mask; query q attends to key k <=> k <= q < visible_until[k]
    media: Media  # the family's own arrays: pixels, and which visual features go into which slots
    targets: np.ndarray  # int32[B, M]
    predictors: np.ndarray  # int32[B, M]: the slot whose hidden state predicts the target
    responses: np.ndarray  # int32[B, M]: which response the target belongs to
    ends: np.ndarray  # int32[B, R]: the slot of the response's last token, at which the reward head is applied
    response_weights: np.ndarray  # float32[B, R]: 1 for responses a supervised objective learns
    pairs: np.ndarray  # int32[B, P, 2]: (chosen, rejected)
    pair_weights: np.ndarray  # float32[B, P]: 0 for tied pairs
    tie_weights: np.ndarray  # float32[B, P]: 0 for strictly ordered pairs
    pair_margins: np.ndarray  # float32[B, P]: a number stored with the pair itself (`ls_factor`), NaN = none
    rewards: np.ndarray  # float32[B, R]: NaN = not scored
    reference_logps: np.ndarray  # float32[B, R]: NaN = not computed
    response_ids: np.ndarray  # int32[B, R]: number of the response in the data set, -1 = unused


Row = TypeVar("Row", RowBatch, Tiles, Patches)


class EncodedGroup(NamedTuple):
    """One ranking group, tokenised and cut into tiles; its indices are relative to the group's own first slot and response."""

    tree: TokenTree
    media: Media  # `slots` are indices into the tree
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


def assemble_row(groups: Sequence[EncodedGroup], budget: Budget, geometry: Geometry) -> RowBatch:
    """Place groups one after the other into a row of static size. They must fit, as the planner guarantees."""
    row = empty_row(budget, geometry)
    slot = tile = visual = target = response = pair = 0
    for group in groups:
        tree, n = group.tree, len(group.tree.tokens)
        here = slice(slot, slot + n)
        row.tokens[here] = tree.tokens
        row.positions[here] = tree.positions
        row.visible_until[here] = tree.visible_until + slot

        geometry.place(row.media, group.media, slot=slot, tile=tile, visual=visual)

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

        slot, tile, visual = slot + n, tile + group.media.units, visual + len(group.media.slots)
        target, response, pair = m.stop, r.stop, p.stop
    return row


def empty_row(budget: Budget, geometry: Geometry) -> RowBatch:
    """A row of padding: every slot is padding, every weight 0."""
    axes = () if geometry.position_axes == 1 else (geometry.position_axes,)
    return RowBatch(
        tokens=np.zeros(budget.slots, np.int32),
        positions=np.zeros((budget.slots, *axes), np.int32),
        visible_until=np.arange(1, budget.slots + 1, dtype=np.int32),
        media=geometry.empty(slots=budget.slots, tiles=budget.tiles, visual=budget.visual),
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


def stack_rows(rows: Sequence[Row]) -> Row:
    """Stack rows (or their media) to a batch; every array gets a leading axis B."""
    return map_arrays(lambda *arrays: np.stack(arrays), *rows)


def by_name(batch: RowBatch) -> dict[str, Any]:
    """The arrays of a batch by name; those of its media are called `media.NAME`."""
    found = {name: value for name, value in batch._asdict().items() if name != "media"}
    return found | {f"media.{name}": value for name, value in batch.media._asdict().items()}


def from_names(arrays: Mapping[str, Any]) -> RowBatch:
    """The inverse of `by_name`."""
    media = {name.removeprefix("media."): value for name, value in arrays.items() if name.startswith("media.")}
    return RowBatch(**{name: value for name, value in arrays.items() if "." not in name}, media=media_of(media))


def map_arrays(function: Callable[..., Any], *trees: Any) -> Any:
    """`jax.tree.map` for nested named tuples of NumPy arrays, without importing jax."""
    first = trees[0]
    if isinstance(first, np.ndarray):
        return function(*trees)
    return type(first)(*(map_arrays(function, *parts) for parts in zip(*trees, strict=True)))


def group_size(group: EncodedGroup) -> np.ndarray:
    """int64[6]: how much of each resource of `Budget` a group needs, in its order."""
    tree = group.tree
    sizes = (len(tree.tokens), group.media.units, len(group.media.slots), len(tree.targets), len(tree.ends), len(group.pairs))
    return np.asarray(sizes, np.int64)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple
