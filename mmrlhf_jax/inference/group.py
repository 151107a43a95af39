"""What a group of devices runs: its rows with a trunk each, its slots with a branch each, and the chunks that they wait for."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable

from mmrlhf_jax.inference.requests import Branch, Tree, Written

Waiting = collections.deque[tuple[Branch, Written]]


@dataclasses.dataclass(eq=False)
class Row:
    """A trunk in the cache, or on its way there. `done` is the number of its tokens that are in the cache."""

    number: int
    tree: Tree | None = None
    done: int = 0
    waiting: Waiting = dataclasses.field(default_factory=collections.deque)
    places: set[int] = dataclasses.field(default_factory=set)  # of running branches
    last_use: int = -1

    @property
    def ready(self) -> bool:
        return self.tree is not None and self.done == len(self.tree.tokens)

    @property
    def free(self) -> bool:
        return not self.waiting and not self.places


@dataclasses.dataclass(eq=False)
class Slot:
    """A branch that is being written."""

    number: int
    row: Row
    place: int
    branch: Branch
    written: Written
    length: int = 0  # its tokens in the cache
    planned: int = 0  # new tokens that the steps so far choose
    forced: collections.deque[int] = dataclasses.field(default_factory=collections.deque)
    closing: bool = False  # the text has ended, and the rest of the scored conversation is fed

    @property
    def prompting(self) -> bool:
        """Whether tokens of its prompt but the last are missing in the cache. If those of the scored conversation are others,
        they are fed with the rest of it."""
        return not self.closing and self.length < len(self.branch.tokens) - 1

    @property
    def runs(self) -> bool:
        """Whether the next step has something to do for it."""
        return not self.prompting and (bool(self.forced) or (not self.closing and self.planned < self.branch.most))

    def feed_last(self) -> None:
        """Let the next step feed the last token of the prompt; behind it is the first new one, or the end."""
        self.forced.append(int(self.branch.tokens[-1]))
        if self.branch.most == 0:
            self.closing, self.written.reason = True, "stop"


class Group:
    """Rows and slots of one group of devices, and the chunks that it waits for."""

    def __init__(self, rows: int, slots: int):
        self.rows = [Row(number) for number in range(rows)]
        self.slots: list[Slot | None] = [None] * slots
        self.trunks: collections.deque[Row] = collections.deque()
        self.branches: collections.deque[Slot] = collections.deque()

    @property
    def idle(self) -> int:
        return sum(slot is None for slot in self.slots)

    @property
    def waiting(self) -> int:
        return sum(len(row.waiting) for row in self.rows)

    def find(self, key: Hashable) -> Row | None:
        """The row that has a trunk with this key."""
        if key is None:
            return None
        return next((row for row in self.rows if row.tree is not None and row.tree.key == key), None)

    def least_used(self) -> Row | None:
        """The free row whose trunk is used for the longest time no more."""
        return min((row for row in self.rows if row.free), key=lambda row: row.last_use, default=None)

    def sibling(self, slot: Slot) -> Slot | None:
        """A slot behind the same trunk whose cache begins with the prompt of this one: another sample of the same request."""
        return next(
            (
                other
                for other in self.slots
                if other is not None
                and other.row is slot.row
                and other.branch.tokens is slot.branch.tokens
                and not other.prompting
                and not other.closing  # the conversation that is scored may have other tokens for the prompt
            ),
            None,
        )
