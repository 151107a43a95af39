"""`mmrlhf data stats`: figures of a data set, and of the rows that training on it takes."""

from __future__ import annotations

import collections
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import measure_all
from mmrlhf_jax.data.packing import auto_budget, fill, plan_rows
from mmrlhf_jax.data.rows import Budget
from mmrlhf_jax.data.tokens import PieceTokenizer
from mmrlhf_jax.models.registry import DEFAULT, family
from mmrlhf_jax.records import RankedRecord, tied_pairs

ROW_SLOTS = (4096, 8192, 16384, 32768)

ESTIMATED = family(DEFAULT)  # the family whose tiles are counted if no model is named


class EstimatedTokenizer(PieceTokenizer):
    """Estimates token counts if no model is named: a word or punctuation mark is one token, a long word one per six characters.
    Its ids have no meaning."""

    def __init__(self) -> None:
        object.__setattr__(self, "tokenizer", None)
        object.__setattr__(self, "image_token", -1)

    def __post_init__(self) -> None: ...

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def special(self, token: str) -> int:
        return zlib.crc32(token.encode()) & 0x7FFFFFFF

    def text(self, text: str) -> tuple[list[int], list[int]]:
        found = [match for match in re.finditer(r"\s?\w{1,6}|\s?[^\w\s]|\s", text)]
        return [zlib.crc32(match[0].encode()) & 0x7FFFFFFF for match in found], [match.end() for match in found]


def estimated_encoder() -> GroupEncoder:
    return GroupEncoder(EstimatedTokenizer(), ESTIMATED.typical_geometry(), ESTIMATED.template)


def measure(
    examples: Any, encoder: GroupEncoder, progress: Callable[[Iterable, str, int], Iterable] | None = None
) -> np.ndarray:
    """Sizes of all groups, int64[groups, resources of `Budget`]."""
    found: Iterable[np.ndarray] = measure_all(examples, encoder)
    return np.stack(list(progress(found, "measuring groups", len(examples)) if progress else found))


def summarise(
    records: Sequence[RankedRecord], layouts: Sequence[Any], sizes: np.ndarray, slots: int, too_long: np.ndarray | None = None
) -> dict[str, Any]:
    """All figures as a JSON object. `pairs` counts strictly ordered ones; `dropped` counts groups that exceed rows of `slots`,
    or of which `too_long`, bool[groups], says that a conversation exceeds the model's positions.

    `packing` predicts, per row size, the rows per epoch and the share of their slots that hold tokens.
    """
    ranks = [[response.rank for response in record.responses] for record in records]
    column = dict(zip(Budget.names(), sizes.T, strict=True))
    within = np.ones(len(sizes), bool) if too_long is None else ~too_long
    packing = {str(size): predict_packing(sizes, size, within) for size in dict.fromkeys((*ROW_SLOTS, slots))}
    return {
        "groups": len(records),
        "responses": sum(map(len, ranks)),
        "pairs": sum(len(record.pairs()) for record in records),
        "tied_pairs": sum(len(tied_pairs(of_group)) for of_group in ranks),
        "images": sum(len(record.images) for record in records),
        "videos": sum(record.video is not None for record in records),
        "text_only": sum(not record.images and record.video is None for record in records),
        "dropped": packing[str(slots)]["dropped"],
        "without_pair": sum(not record.pairs() for record in records),
        "critiques": sum(response.critique is not None for record in records for response in record.responses),
        "rewards": sum(response.reward is not None for record in records for response in record.responses),
        "frames": sum(layout.frames for layout in layouts),
        "tokens": int(column["slots"].sum()),
        "pair_expanded_tokens": pair_expanded_tokens(sizes),
        "per_group": {name: quantiles(values) for name, values in column.items()},
        "tiers": dict(collections.Counter(map(tiers, ranks)).most_common(20)),
        "sources": dict(collections.Counter(record.source or "unnamed" for record in records).most_common(20)),
        "scores": score_counts(records),
        "packing": packing,
    }


def predict_packing(sizes: np.ndarray, slots: int, within: np.ndarray) -> dict[str, Any]:
    """Figures of one epoch packed into rows of `slots`, with the budgets that the trainer would derive.

    Groups outside `within`, bool[groups], are dropped.
    """
    short = sizes[within & (sizes[:, 0] <= slots)]
    budget = auto_budget(short, slots)
    fitting = short[(short <= budget).all(axis=1)]
    rows = plan_rows(fitting, budget, seed=0, epoch=0)
    return {"rows": len(rows), "fill": fill(fitting, rows, slots), "dropped": len(sizes) - len(fitting)}


def pair_expanded_tokens(sizes: np.ndarray) -> int:
    """The approximate number of tokens that a trainer without shared prefixes computes: two whole conversations per pair."""
    column = dict(zip(Budget.names(), sizes.T, strict=True))
    branches = column["targets"] + column["responses"]  # a newline follows each response
    conversation = column["slots"] - branches + branches / column["responses"]
    return int((2 * column["pairs"] * conversation).sum())


def tiers(ranks: Sequence[int | None]) -> str:
    """The number of responses on each rank, best first, such as "1-2-1"."""
    if None in ranks:
        return "not ranked"
    return "-".join(str(count) for _, count in sorted(collections.Counter(ranks).items()))


def quantiles(values: np.ndarray) -> dict[str, float]:
    named = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {"mean": float(values.mean())} | {name: float(np.quantile(values, q)) for name, q in named.items()}


def score_counts(records: Sequence[RankedRecord]) -> dict[str, dict[str, int]]:
    """Score name -> value -> how many responses have it."""
    counts: dict[str, collections.Counter[float]] = {}
    for record in records:
        for response in record.responses:
            for name, value in (response.scores or {}).items():
                counts.setdefault(name, collections.Counter())[value] += 1
    return {name: {f"{value:g}": count for value, count in sorted(found.items())} for name, found in counts.items()}
