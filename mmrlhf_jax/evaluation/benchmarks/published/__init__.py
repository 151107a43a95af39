"""Published tables of reward benchmarks: one JSON file per benchmark, with a list of tables."""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import Literal

from mmrlhf_jax import strict_json

OVERALL, MACRO = "overall", "macro"  # columns of a table: over all pairs, and the mean of the groups


@dataclasses.dataclass(frozen=True)
class Published:
    """A published table of accuracies.

    Attributes:
        title, source: what the figures are, and where they are printed.
        columns: names of groups of the benchmark, `OVERALL` or `MACRO`.
        rows: name of the model -> a figure in [0, 1] or None per column.
        note: what to know before figures are compared.
        metric, grouping: which of a model's figures stand beside these, and by which grouping of the benchmark.
    """

    title: str
    source: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]
    note: str = ""
    metric: Literal["acc", "acc_plus"] = "acc"
    grouping: str = "official"


def published(benchmark: str) -> tuple[Published, ...]:
    """The tables of the benchmark of this name."""
    tables = strict_json.loads(resources.files(__name__).joinpath(f"{benchmark}.json").read_text(encoding="utf-8"))
    return tuple(_table(**fields) for fields in tables)


def _table(*, columns: list[str], rows: dict[str, list[float | None]], **texts: str) -> Published:
    return Published(columns=tuple(columns), rows={name: tuple(figures) for name, figures in rows.items()}, **texts)
