"""What there is to know about a reward benchmark: its groups, its prompts, its official counts and its published figures."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.evaluation.benchmarks.published import Published
from mmrlhf_jax.records import RankedRecord


@dataclasses.dataclass(frozen=True)
class Grouping:
    """A way to group a benchmark's pairs.

    Attributes:
        groups: the groups of a record: one, over which the macro mean is taken, and possibly a part of it.
        pairs: the official number of pairs of groups; {} if it is not known.
        about: whose grouping this is.
    """

    groups: Callable[[RankedRecord], tuple[str, ...]]
    pairs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    about: str = ""


def same_prompt(record: RankedRecord) -> object:
    """The key of a record's prompt: its id (without the #2, #3, ... that readers add to an id that occurs again), text and
    media."""
    return same_id_and_text(record), record.images, record.video


def same_id_and_text(record: RankedRecord) -> object:
    """The key of a record's prompt where an id stands for a picture: in parquet files every row has a picture of its own."""
    return re.sub(r"#\d+$", "", record.id), record.prompt


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A reward benchmark.

    Attributes:
        name, title: in options, and in texts.
        matches: whether records are those of this benchmark, or some of them.
        groupings: the ways to group pairs, by name; the first is the benchmark's own.
        total: the official number of pairs; None if it is not known.
        order: names of groups in the order in which they are shown; others follow.
        prompt: the key of a record's prompt: prompts are resampled for intervals, and ACC+ is the share of those whose pairs
            are all right.
        published: tables to compare with.
    """

    name: str
    title: str
    matches: Callable[[Sequence[RankedRecord]], bool]
    groupings: Mapping[str, Grouping]
    total: int | None = None
    order: tuple[str, ...] = ()
    prompt: Callable[[RankedRecord], object] = same_prompt
    published: tuple[Published, ...] = ()

    def grouping(self, name: str | None) -> tuple[str, Grouping]:
        """The grouping of this name (None: the benchmark's own), with its name. UserError for an unknown one."""
        name = name or next(iter(self.groupings))
        if name not in self.groupings:
            raise UserError(f"--grouping {name!r}: {self.title} has {', '.join(self.groupings)}")
        return name, self.groupings[name]


# The field of a record that says which benchmark's reader made it.
FIELD = "benchmark"


def fits_in(records: Sequence[RankedRecord], total: int) -> bool:
    """Whether the records have no more pairs than a benchmark: others, such as training data, may have its ids or folders."""
    return sum(len(record.pairs()) for record in records) <= total


def all_say(title: str) -> Callable[[Sequence[RankedRecord]], bool]:
    """Whether every record's field `benchmark` is `title`."""
    return lambda records: bool(records) and all(record.extra.get(FIELD) == title for record in records)
