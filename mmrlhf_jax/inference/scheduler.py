"""Runs trees in a lane: which trunk gets a row, which branch a slot, and what every call of a program does.

The host is one step behind the device: while a step is computed, the results of the one before it are read. A branch whose stop
token is found that way has been given one step too many, whose result is dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mmrlhf_jax.data.tokens import common_prefix
from mmrlhf_jax.inference.calls import Chosen
from mmrlhf_jax.inference.group import Group, Slot, Waiting
from mmrlhf_jax.inference.prefill import Prefill
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
        self._prefill = Prefill(programs, weights, self.groups)
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
        """End a text that nobody waits for any more, also one whose reward alone is missing. Its slot is free before the next
        step."""
        if written.done:
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
        """Whether a slot waits for a chunk: a step without it would take as long."""
        return any(group.branches or (group.trunks and group.idle) for group in self.groups)

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
                    slot.feed_last()

    def _extend(self) -> bool:
        """Compute a chunk of the groups that wait for one; False if none does."""
        cache = self._prefill.extend(self._cache)
        if cache is not None:
            self._cache = cache
        return cache is not None

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
            if not math.isfinite(logps[here]):
                self._release(group, slot, "failed")
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
        if written.reason is not None:
            return
        for group in self.groups:
            for slot in group.slots:
                if slot is not None and slot.written is written:
                    self._end(group, slot, "stop", written.tokens)
                    return
        written.reason, written.done = "stop", True  # its last step is under way, for which it needs no slot any more

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
