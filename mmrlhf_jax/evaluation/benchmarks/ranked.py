"""Ranked data of any other origin, grouped by the field `category`."""

from __future__ import annotations

from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Grouping
from mmrlhf_jax.evaluation.benchmarks.mm_rlhf import CATEGORIES, folder_category
from mmrlhf_jax.records import RankedRecord


def category(record: RankedRecord) -> str:
    """The record's field `category`, else the category of MM-RLHF that is a folder of its media, else `other`."""
    if isinstance(record.extra.get("category"), str):
        return record.extra["category"]
    return folder_category(record) or "other"


BENCHMARK = Benchmark(
    name="ranked",
    title="ranked data",
    matches=lambda records: True,
    groupings={"category": Grouping(lambda record: (category(record),), about="the field category, or the folders of MM-RLHF")},
    order=CATEGORIES,
)
