"""Puts trunks and the prompts of branches into the cache, one chunk of every group that waits for one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmrlhf_jax.inference.calls import Chunk
from mmrlhf_jax.inference.group import Group, Row, Slot
from mmrlhf_jax.inference.lane import Cache, chunk_size
from mmrlhf_jax.inference.programs import Programs


class _Text(NamedTuple):
    """The text at the head of a group's queue."""

    tokens: np.ndarray
    positions: np.ndarray
    done: int  # of its tokens


class Prefill:
    """What the groups wait for in their queues `trunks` and `branches`. Branches come first: a slot of theirs waits already."""

    def __init__(self, programs: Programs, weights: Any, groups: Sequence[Group]):
        self._programs, self._weights, self._groups = programs, weights, groups
        self._visual = programs.no_visual()  # of the trunk of every group that is on its way
        self._large = False  # whether the last chunk was a large one

    def extend(self, cache: Cache) -> Cache | None:
        """The cache with one chunk more of every group that waits for one of the same kind and size; None if no group waits."""
        for group in self._groups:  # drop what was cancelled meanwhile
            while group.branches and group.slots[group.branches[0].number] is not group.branches[0]:
                group.branches.popleft()
            while group.trunks and group.trunks[0].free:
                group.trunks.popleft().tree = None
        branches = {number: group.branches[0] for number, group in enumerate(self._groups) if group.branches}
        if branches:
            return self._copied(cache, branches) or self._extend_branches(cache, branches)
        trunks = {number: group.trunks[0] for number, group in enumerate(self._groups) if group.trunks}
        return self._extend_trunks(cache, trunks) if trunks else None

    def _copied(self, cache: Cache, heads: dict[int, Slot]) -> Cache | None:
        """The cache with the prompts of branches whose siblings have them already, one of every group; None if none has."""
        siblings = {number: self._groups[number].sibling(slot) for number, slot in heads.items()}
        siblings = {number: sibling for number, sibling in siblings.items() if sibling is not None}
        if not siblings:
            return None
        copies = self._programs.empty_copies()
        for number, sibling in siblings.items():
            copies.source[number], copies.target[number] = sibling.number, heads[number].number
        cache = self._programs.copy(cache, copies)
        for number in siblings:
            self._add(number, heads[number], len(heads[number].branch.tokens) - 1)
        return cache

    def _extend_branches(self, cache: Cache, heads: dict[int, Slot]) -> Cache:
        texts = {}
        for number, slot in heads.items():
            tokens = slot.branch.tokens[:-1]  # the last one is fed by the step that chooses the first new token
            texts[number] = _Text(tokens, slot.branch.position + np.arange(len(tokens)), slot.length)
        chunk, taken = self._chunk(texts, self._programs.lane.branch_chunks, self._programs.lane.branch)
        for number in taken:
            slot = heads[number]
            chunk.row[number], chunk.slot[number] = slot.row.number, slot.number
            chunk.trunk[number] = len(slot.row.tree.tokens)
        cache = self._programs.extend_branch(self._weights, cache, chunk)
        for number, count in taken.items():
            self._add(number, heads[number], count)
        return cache

    def _add(self, number: int, slot: Slot, count: int) -> None:
        """Note that so many more tokens of a group's first branch are in the cache."""
        slot.length += count
        if not slot.prompting:
            self._groups[number].branches.popleft()
            slot.feed_last()

    def _extend_trunks(self, cache: Cache, heads: dict[int, Row]) -> Cache:
        self._encode(heads)
        texts = {number: _Text(row.tree.tokens, row.tree.positions, row.done) for number, row in heads.items()}
        chunk, taken = self._chunk(texts, self._programs.lane.trunk_chunks, self._programs.lane.trunk)
        for number in taken:
            visual = heads[number].tree.visual - chunk.start[number]
            chunk.is_visual[number, visual[(visual >= 0) & (visual < chunk.tokens.shape[1])]] = True
        cache = self._programs.extend_trunk(self._weights, cache, self._visual, chunk)
        rows = np.full(len(self._groups), self._programs.lane.rows, np.int32)
        for number, count in taken.items():
            heads[number].done += count
            if heads[number].ready:
                rows[number] = self._groups[number].trunks.popleft().number
        return self._programs.place(cache, rows) if rows.min() < self._programs.lane.rows else cache

    def _encode(self, heads: dict[int, Row]) -> None:
        """Compute the visual tokens of the trunks that have not begun yet."""
        fresh = {number: row for number, row in heads.items() if row.done == 0 and row.tree.media is not None}
        if not fresh:
            return
        trees = {number: row.tree for number, row in fresh.items()}
        self._visual = self._programs.encode(self._weights, self._visual, trees)
        for row in fresh.values():  # the row may be kept for long, and its pixels are not needed any more
            row.tree = dataclasses.replace(row.tree, media=None)

    def _chunk(self, texts: dict[int, _Text], sizes: Sequence[int], limit: int) -> tuple[Chunk, dict[int, int]]:
        """(the next chunk of some of these texts, group -> how many of its tokens are in it).

        Only texts that need the same size of chunk share one: the programs that a text goes through depend on that text alone,
        and so do its bits. Where both sizes are needed, they take turns.
        """
        needs = {number: chunk_size(len(text.tokens) - text.done, text.done, sizes, limit) for number, text in texts.items()}
        size = (min if self._large else max)(needs.values())
        self._large = size == max(sizes)
        chunk, taken = self._programs.empty_chunk(size), {}
        for number in (number for number, need in needs.items() if need == size):
            text = texts[number]
            part = slice(text.done, text.done + size)
            taken[number] = chunk.count[number] = count = len(text.tokens[part])
            chunk.start[number], chunk.tokens[number, :count] = text.done, text.tokens[part]
            chunk.positions[number, :count] = _on_axes(text.positions[part], chunk.positions.ndim - 1)
        return chunk, taken


def _on_axes(positions: np.ndarray, axes: int) -> np.ndarray:
    """Positions [n] on three axes, if the model has three; positions [n, 3] are unchanged."""
    return positions if positions.ndim == axes else np.repeat(positions[:, None], 3, axis=1)
