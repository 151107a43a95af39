"""Figures as JSON and as a table of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mmrlhf_jax.evaluation.reward_bench import Accuracy, Figures, Macro

# Keys of the JSON that are no groups; a group of one of these names gets a star.
_TAKEN = ("overall", "macro", "acc_longer_wins", "run")


def as_json(found: Figures, run: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by group, then `overall`, `macro`, `acc_longer_wins` and `run`: how they were made, and what makes them
    others than those of the whole benchmark."""
    groups = {f"{name}*" if name in _TAKEN else name: row for name, row in group_rows(found).items()}
    return groups | {
        "overall": dataclasses.asdict(found.overall),
        "macro": dataclasses.asdict(found.macro),
        "acc_longer_wins": found.overall.longer_wins,
        "run": {**run, "differences": list(found.differences)},
    }


def group_rows(found: Figures) -> dict[str, dict[str, Any]]:
    """The figures of every group, and whether it is a part of another one."""
    return {name: dataclasses.asdict(row) | {"part": name in found.parts} for name, row in found.groups.items()}


def as_lines(found: Figures) -> Iterator[str]:
    """The lines of the table, and of what makes the figures others than those of the whole benchmark."""
    width = max(16, *(len(name) + 3 for name in found.groups))
    head = f"{'pairs':>7}{'prompts':>9}{'scored':>8}{'ties':>6}{'ACC':>8}{'95 %':>15}{'ACC+':>8}{'95 %':>15}{'longer':>8}"
    yield f"{'category':<{width}}{head}"
    for name, row in found.groups.items():
        yield f"{'  ' * (name in found.parts) + name:<{width}}{_cells(row)}"
    yield f"{'overall':<{width}}{_cells(found.overall)}"
    yield f"{_mean_of(found.macro.groups):<{width}}{'':>30}{_macro(found.macro)}"
    if found.overall.ties:
        yield f"ACC of the pairs that are not tied: {_share(found.overall.acc_without_ties)}"
    if found.differences:
        yield "before these figures are compared with others:"
    for text in found.differences:
        yield f"  {text}"


def _mean_of(groups: int) -> str:
    return f"mean of {groups} group{'' if groups == 1 else 's'}"


def _cells(row: Accuracy) -> str:
    counts = f"{row.pairs:>7}{row.groups:>9}{row.scored:>8}{row.ties:>6}"
    acc, plus = _share(row.acc), _share(row.acc_plus)
    longer = _share(row.longer_wins)
    return f"{counts}{acc:>8}{_interval(row.acc_interval):>15}{plus:>8}{_interval(row.acc_plus_interval):>15}{longer:>8}"


def _macro(row: Macro) -> str:
    acc, plus = _share(row.acc), _share(row.acc_plus)
    return f"{acc:>8}{_interval(row.acc_interval):>15}{plus:>8}{_interval(row.acc_plus_interval):>15}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:.3f}-{value[1]:.3f}"
