"""Runs trees in a lane: which trunk gets a row, which branch a slot, and what every call of a program does.

The host is one step behind the device: while a step is computed, the results of the one before it are read. A branch whose stop
token is found that way has been given one step too many, whose result is dropped.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mmrlhf_jax.data.tokens import common_prefix
from mmrlhf_jax.inference.calls import Chosen, Chunk
from mmrlhf_jax.inference.group import Group, Slot, Waiting
from mmrlhf_jax.inference.lane import BRANCH_CHUNKS, TRUNK_CHUNKS, chunk_size
from mmrlhf_jax.inference.programs import Programs
from mmrlhf_jax.inference.requests import Reason, Tree, Written


class _Expected(NamedTuple):
    """What a step computes for a slot."""

    group: Group
    number: int  # of the group
    slot: Slot
    kind: Literal["new", "reward"]


class Scheduler:
    """`streaming`: whether chunks alternate with steps, so that no running text stalls; otherwise slots are filled first.

    `steps` counts decoding steps, and `useful` the slots in them whose result was used.
    """

    def __init__(self, programs: Programs, weights: Any, *, streaming: bool = False):
        lane = programs.lane
        self.programs, self.weights, self.lane, self.streaming = programs, weights, lane, streaming
        self.groups = [Group(lane.rows, lane.slots) for _ in range(programs.groups)]
        self.queue: collections.deque[tuple[Tree, Waiting]] = collections.deque()
        self.steps = self.useful = self.clock = 0
        self._cache = lane.cache(programs.model.config.text, programs.model.dtype, programs.mesh)
        self._visual = programs.no_visual()
        self._last: Any = np.zeros((programs.groups, lane.slots), np.int32)
        self._flight: tuple[Chosen, list[_Expected]] | None = None

    # Requests --------------------------------------------------------------------------------------------------------

    def submit(self, tree: Tree) -> list[Written]:
        """Queue a tree. The texts grow while `step` is called. ValueError if it does not fit the lane."""
        longest = max(branch.length for branch in tree.branches)
        if len(tree.tokens) > self.lane.trunk or longest > self.lane.branch:
            raise ValueError(f"a trunk of {len(tree.tokens)} tokens with branches of {longest} does not fit {self.lane}")
        pairs = [(branch, Written()) for branch in tree.branches]
        self.queue.append((tree, collections.deque(pairs)))
        return [written for _, written in pairs]

    def cancel(self, written: Written) -> None:
        """End a text that nobody waits for any more. Its slot is free before the next step."""
        if written.reason is not None:
            return
        for group in self.groups:
            for slot in group.slots:
                if slot is not None and slot.written is written:
                    self._release(group, slot, "cancelled")
                    return
        for waiting in (*(row.waiting for group in self.groups for row in group.rows), *(left for _, left in self.queue)):
            kept = [pair for pair in waiting if pair[1] is not written]
            if len(kept) < len(waiting):
                waiting.clear()
                waiting.extend(kept)
        written.reason, written.done = "cancelled", True

    @property
    def busy(self) -> bool:
        waits = any(left for _, left in self.queue)
        runs = any(group.idle < len(group.slots) or group.waiting for group in self.groups)
        return waits or runs or self._flight is not None

    def run(self) -> Iterator[list[Written]]:
        """Steps until everything has been written; yields the texts that each of them changed."""
        while self.busy:
            yield self.step()

    # One step --------------------------------------------------------------------------------------------------------

    def step(self) -> list[Written]:
        """Give out rows and slots, compute a chunk or more, start a decoding step, and read the results of the one before.

        Returns the texts that grew or ended.
        """
        self.clock += 1
        self._admit()
        while self._extend():
            self._admit()
            if self.streaming or not self._starving():
                break
        return self._decode()

    def _starving(self) -> bool:
        """Whether a slot waits for a chunk."""
        return any(
            group.branches or (group.trunks and group.idle > group.waiting) or any(s and s.prompting for s in group.slots)
            for group in self.groups
        )

    def _admit(self) -> None:
        for group in self.groups:
            self._fill(group)
        while self.queue:
            if not self.queue[0][1]:  # all were cancelled
                self.queue.popleft()
                continue
            # Trunks are computed ahead, so that a slot that becomes free finds a branch.
            wants = [g for g in self.groups if g.waiting <= g.idle + len(g.slots) // 4 and g.least_used() is not None]
            known = [g for g in self.groups if g.find(self.queue[0][0].key) is not None]
            if not (known or wants):
                return
            self._place(min(known or wants, key=lambda g: g.waiting - g.idle))

    def _place(self, group: Group) -> None:
        """Give the next tree of the queue a row of the group."""
        tree, waiting = self.queue.popleft()
        row = group.find(tree.key)
        if row is None:
            row = group.least_used()
            if row in group.trunks:  # the branches of its last tree were cancelled before the trunk was there
                group.trunks.remove(row)
            row.tree, row.done = dataclasses.replace(tree, branches=()), 0
            if tree.tokens.size:
                group.trunks.append(row)
        else:
            for _, written in waiting:
                written.cached = len(tree.tokens)
        row.waiting.extend(waiting)
        row.last_use = self.clock
        self._fill(group)

    def _fill(self, group: Group) -> None:
        """Give free slots to the branches of trunks that are ready, oldest first."""
        for row in sorted((row for row in group.rows if row.ready and row.waiting), key=lambda row: row.last_use):
            while row.waiting and len(row.places) < self.lane.places and None in group.slots:
                number = group.slots.index(None)
                place = min(set(range(self.lane.places)) - row.places)
                row.places.add(place)
                slot = group.slots[number] = Slot(number, row, place, *row.waiting.popleft())
                if slot.prompting:
                    group.branches.append(slot)
                else:
                    _feed_last(slot)

    def _extend(self) -> bool:
        """Compute a chunk of every group that waits for one of the same kind; False if none does."""
        for group in self.groups:  # drop what was cancelled meanwhile
            while group.branches and group.slots[group.branches[0].number] is not group.branches[0]:
                group.branches.popleft()
            while group.trunks and group.trunks[0].free:
                group.trunks.popleft().tree = None
        if any(group.branches for group in self.groups):
            if not self._copy_branches():
                self._extend_branches()
        elif any(group.trunks for group in self.groups):
            self._extend_trunks()
        else:
            return False
        return True

    def _copy_branches(self) -> bool:
        """Give branches the keys of their prompt from a sibling that has them, one of every group; False if there is none."""
        found = [
            (number, group.branches[0], sibling)
            for number, group in enumerate(self.groups)
            if group.branches and (sibling := group.sibling(group.branches[0])) is not None
        ]
        if not found:
            return False
        copies = self.programs.empty_copies()
        for number, slot, sibling in found:
            copies.source[number], copies.target[number] = sibling.number, slot.number
        self._cache = self.programs.copy(self._cache, copies)
        for number, slot, _ in found:
            slot.length = len(slot.branch.tokens) - 1
            self.groups[number].branches.popleft()
            _feed_last(slot)
        return True

    def _extend_branches(self) -> None:
        heads = [(number, group.branches[0]) for number, group in enumerate(self.groups) if group.branches]
        chunk, taken = self._chunk(
            [
                (number, slot.branch.tokens[:-1], slot.branch.position + np.arange(len(slot.branch.tokens) - 1), slot.length)
                for number, slot in heads
            ],
            BRANCH_CHUNKS,
            self.lane.branch,
        )
        for number, slot in heads:
            chunk.row[number], chunk.slot[number] = slot.row.number, slot.number
            chunk.trunk[number] = len(slot.row.tree.tokens)
        self._cache = self.programs.extend_branch(self.weights, self._cache, chunk)
        for number, slot in heads:
            slot.length += taken.get(number, 0)
            if not slot.prompting:
                self.groups[number].branches.popleft()
                _feed_last(slot)

    def _extend_trunks(self) -> None:
        heads = [(number, group.trunks[0]) for number, group in enumerate(self.groups) if group.trunks]
        fresh = {number: row.tree for number, row in heads if row.done == 0 and row.tree.media is not None}
        if fresh:
            self._visual = self.programs.encode(self.weights, self._visual, fresh)
            for number in fresh:  # the row may be kept for long, and its pixels are not needed any more
                row = self.groups[number].trunks[0]
                row.tree = dataclasses.replace(row.tree, media=None)
        chunk, taken = self._chunk(
            [(number, row.tree.tokens, row.tree.positions, row.done) for number, row in heads], TRUNK_CHUNKS, self.lane.trunk
        )
        for number, row in heads:
            chunk.row[number] = row.number
            visual = row.tree.visual - chunk.start[number]
            chunk.is_visual[number, visual[(visual >= 0) & (visual < chunk.tokens.shape[1])]] = True
        self._cache = self.programs.extend_trunk(self.weights, self._cache, self._visual, chunk)
        for number, row in heads:
            row.done += taken.get(number, 0)
            if row.ready:
                self.groups[number].trunks.popleft()

    def _chunk(
        self, texts: Sequence[tuple[int, np.ndarray, np.ndarray, int]], sizes: Sequence[int], limit: int
    ) -> tuple[Chunk, dict[int, int]]:
        """(a chunk of these groups' texts, how many tokens of each it has). `texts` has (group, all tokens, all positions,
        tokens that are done). A text whose slots end before the chunk's do waits for the next one."""
        size = max(chunk_size(len(tokens) - done, done, sizes, limit) for _, tokens, _, done in texts)
        chunk, taken = self.programs.empty_chunk(size), {}
        for number, tokens, positions, done in texts:
            if done + size > limit:
                continue
            part = tokens[done : done + size]
            taken[number] = chunk.count[number] = len(part)
            chunk.tokens[number, : len(part)], chunk.start[number] = part, done
            chunk.positions[number, : len(part)] = _on_axes(positions[done : done + size], chunk.positions.ndim - 1)
        return chunk, taken

    # Decoding --------------------------------------------------------------------------------------------------------

    def _decode(self) -> list[Written]:
        before, self._flight = self._flight, None
        running = [
            (number, group, slot)
            for number, group in enumerate(self.groups)
            for slot in group.slots
            if slot is not None and slot.runs
        ]
        if running:
            self._flight = self._start(running)
        return self._read(*before) if before is not None else []

    def _start(self, running: Sequence[tuple[int, Group, Slot]]) -> tuple[Chosen, list[_Expected]]:
        """Start a decoding step of these slots."""
        step, draws = self.programs.empty_step()
        expected = []
        for number, group, slot in running:
            here = number, slot.number
            branch, row = slot.branch, slot.row
            row.last_use = self.clock
            step.position[here], step.length[here] = branch.position + slot.length, slot.length
            step.row[here], step.place[here], step.trunk[here] = row.number, slot.place, len(row.tree.tokens)
            if slot.forced:
                step.forced[here] = slot.forced.popleft()
            slot.length += 1
            if slot.closing:
                if not slot.forced:
                    expected.append(_Expected(group, number, slot, "reward"))
                continue
            how = branch.sampling
            draws.temperature[here], draws.top_p[here], draws.min_p[here] = how.temperature, how.top_p, how.min_p
            draws.top_k[here], draws.seed[here] = how.top_k, how.seed
            draws.sample[here], draws.position[here] = branch.sample, slot.planned
            slot.planned += 1
            expected.append(_Expected(group, number, slot, "new"))
            if slot.planned == branch.most and branch.scored is None:  # nothing follows, whatever this step chooses
                self._leave(group, slot)
        top = any(slot.branch.top for _, _, slot in running)
        self._cache, chosen = self.programs.decode(self.weights, self._cache, self._last, step, draws, top=top)
        self._last = chosen.tokens
        self.steps += 1
        return chosen, expected

    def _read(self, chosen: Chosen, expected: Sequence[_Expected]) -> list[Written]:
        """Read the results of a step. Those of a slot that has ended since are dropped."""
        tokens, logps, rewards = (np.asarray(values) for values in chosen[:3])
        top = None if chosen.top is None else [np.asarray(values) for values in chosen.top]
        changed = []
        for group, number, slot, kind in expected:
            written, here = slot.written, (number, slot.number)
            if written.done or (slot.closing and kind == "new"):
                continue
            self.useful += 1
            changed.append(written)
            if kind == "reward":
                written.reward = float(rewards[here])
                self._release(group, slot, written.reason)
                continue
            token = int(tokens[here])
            written.tokens.append(token)
            written.logps.append(float(logps[here]))
            if slot.branch.top and top is not None:
                written.top.append((top[0][here], top[1][here]))
            if token in slot.branch.stops:
                self._end(group, slot, "stop", written.tokens[:-1])
            elif len(written.tokens) == slot.branch.most:
                self._end(group, slot, "length", written.tokens)
        return changed

    def stop(self, written: Written) -> None:
        """End a text at its last token, as a stop token does; for stop strings, which are found in the text."""
        for group in self.groups:
            for slot in group.slots:
                if slot is not None and slot.written is written and not slot.closing:
                    self._end(group, slot, "stop", written.tokens)

    def _end(self, group: Group, slot: Slot, reason: Reason, kept: list[int]) -> None:
        """A text has ended: free its slot, or feed what is missing of the conversation whose reward is wanted."""
        slot.written.reason = reason
        wanted = None if slot.branch.scored is None else slot.branch.scored(kept)
        if wanted is None or len(wanted) > self.lane.branch:
            self._release(group, slot, reason)
            return
        have = np.concatenate([slot.branch.tokens, np.asarray(slot.written.tokens, np.int32)])[: slot.length]
        slot.length = min(common_prefix([have, wanted]), len(wanted) - 1)
        slot.forced = collections.deque(wanted[slot.length :].tolist())
        slot.closing = True

    def _release(self, group: Group, slot: Slot, reason: Reason | None) -> None:
        slot.written.reason, slot.written.done = reason, True
        self._leave(group, slot)

    def _leave(self, group: Group, slot: Slot) -> None:
        """Make room for another branch."""
        if group.slots[slot.number] is slot:
            slot.row.places.discard(slot.place)
            group.slots[slot.number] = None


def _feed_last(slot: Slot) -> None:
    """Let the next step feed the last token of the prompt; behind it is the first new one, or the end."""
    slot.forced.append(int(slot.branch.tokens[-1]))
    if slot.branch.most == 0:
        slot.closing, slot.written.reason = True, "stop"


def _on_axes(positions: np.ndarray, axes: int) -> np.ndarray:
    """Positions [n] on several axes, if there are several; positions [n, 3] are unchanged."""
    return positions if positions.ndim == axes else np.repeat(positions[:, None], 3, axis=1)
