"""Documents that the harness scores together, as the two questions of a pair: either all of a group are scored, or none."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mmrlhf_jax.suite.harness.irregular import TOGETHER


class Groups:
    """The groups of a task's documents, of all that the data set has. `documents` are those of lmms-eval, by number.

    Where the harness scores every document alone, each one is its own group. `value` is that of `irregular.Together`.
    """

    def __init__(self, harness_task: str, documents: Any):
        self._rule = TOGETHER.get(harness_task)
        self.value = None if self._rule is None else self._rule.value
        self._members: dict[str, tuple[str, ...]] = {}
        self._incomplete: set[str] = set()  # documents that can never be scored, since the data set lacks a partner
        self._valued: set[str] = set()
        if self._rule is None:
            return
        groups: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
        for number, row in enumerate(documents.select_columns(list(self._rule.columns))):
            groups.setdefault(self._rule.key(row), []).append((str(number), row))
        for group in groups.values():
            members = tuple(name for name, _ in group)
            self._members |= dict.fromkeys(members, members)
            self._valued |= {name for name, row in group if self._rule.has_value(row)}
            if not self._rule.is_complete([row for _, row in group]):
                self._incomplete |= set(members)

    @property
    def judged(self) -> bool:
        """Whether the harness calls its judge about groups, in an aggregation, and not about documents."""
        return self._rule is not None and self._rule.judged

    def of(self, name: str) -> tuple[str, ...]:
        """The documents that are scored with this one, and itself, in the data set's order."""
        return self._members.get(name, (name,))

    def are_there(self, name: str, there: Collection[str]) -> bool:
        """Whether the whole group of a document is among these."""
        return name not in self._incomplete and all(each in there for each in self.of(name))

    def judged_with(self, name: str, scored: Collection[str]) -> bool:
        """Whether the judge is called when this document is scored as the last one of these: about itself, or about its group,
        which is whole then."""
        return not self.judged or self.are_there(name, scored)

    def apart(self, there: Collection[str]) -> list[str]:
        """Those of these documents whose group is not whole."""
        return [name for name in there if not self.are_there(name, there)]

    def has_value(self, name: str) -> bool:
        """Whether the value of the group is that of this document, too."""
        return self._rule is None or name in self._valued

    @property
    def first(self) -> dict[str, str]:
        """Document -> the first one of its group, of the documents that are not alone."""
        return {name: members[0] for name, members in self._members.items()}
