"""Figures of a reward model on ranked records: ACC (pairs right) and ACC+ (prompts with all pairs right), of every group.

A pair is right if the chosen response scores strictly higher: equal rewards are a tie, which is not right and is counted apart.
A pair is scored if both responses have a reward; what is not scored is missing from the coverage, and counts for nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from mmrlhf_jax.evaluation.benchmarks import ranked
from mmrlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Grouping, same_prompt
from mmrlhf_jax.evaluation.benchmarks.published import MACRO, OVERALL, Published
from mmrlhf_jax.intervals import Interval, mean_ratio_interval, ratio_interval
from mmrlhf_jax.records import Pair, RankedRecord


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Figures of some records; None where nothing is scored.

    Attributes:
        pairs, scored, right, ties: numbers of strictly ordered pairs.
        groups, scored_groups, right_groups: numbers of prompts with such pairs: all, with all pairs scored, with all right.
        acc, acc_plus: right / scored, and right_groups / scored_groups.
        acc_without_ties: right / (scored - ties), as VL-RewardBench's own code divides.
        acc_interval, acc_plus_interval: 95 % intervals, by resampling prompts.
        longer_wins: ACC of the baseline that prefers the longer response, over the scored pairs; equally long ones count half.
    """

    pairs: int
    groups: int
    acc: float | None
    acc_plus: float | None
    acc_without_ties: float | None
    scored: int
    right: int
    ties: int
    scored_groups: int
    right_groups: int
    acc_interval: Interval | None
    acc_plus_interval: Interval | None
    longer_wins: float | None


@dataclasses.dataclass(frozen=True)
class Macro:
    """Means of the groups' figures; None if a group has none."""

    groups: int
    acc: float | None
    acc_interval: Interval | None
    acc_plus: float | None
    acc_plus_interval: Interval | None


@dataclasses.dataclass(frozen=True)
class Figures:
    """`groups` are in the order in which they are shown; those in `parts` are parts of another one, and not in the means.
    `differences` are sentences on what makes them others than those of the whole benchmark."""

    groups: Mapping[str, Accuracy]
    parts: frozenset[str]
    overall: Accuracy
    macro: Macro
    differences: tuple[str, ...] = ()


# Outcomes of single pairs -----------------------------------------------------------------------------------------------


def outcome(record: RankedRecord, pair: Pair) -> bool | None:
    """Whether the chosen response has the higher reward; None for a tie. ValueError if one has no reward."""
    chosen, rejected = (record.responses[index].reward for index in pair)
    if chosen is None or rejected is None:
        raise ValueError(f"record {record.id!r}: a response has no reward")
    return None if chosen == rejected else chosen > rejected


def is_scored(record: RankedRecord, pair: Pair) -> bool:
    return all(record.responses[index].reward is not None for index in pair)


def longer(record: RankedRecord, pair: Pair) -> float:
    """1 if the chosen response is longer, 0 if it is shorter, one half if both are equally long."""
    chosen, rejected = (len(record.responses[index].text) for index in pair)
    return 0.5 if chosen == rejected else float(chosen > rejected)


@dataclasses.dataclass
class _Prompt:
    """Counts over the pairs of one prompt."""

    pairs: int = 0
    scored: int = 0
    right: int = 0
    ties: int = 0
    longer: float = 0.0

    def add(self, record: RankedRecord, pair: Pair) -> None:
        self.pairs += 1
        if is_scored(record, pair):
            found = outcome(record, pair)
            self.scored += 1
            self.longer += longer(record, pair)
            self.right += found is True
            self.ties += found is None


def _prompts(records: Sequence[RankedRecord], key: Callable[[RankedRecord], object]) -> list[_Prompt]:
    """The counts of every prompt that has a pair."""
    found: dict[object, _Prompt] = {}
    for record in records:
        for pair in record.pairs():
            found.setdefault(key(record), _Prompt()).add(record, pair)
    return list(found.values())


# Figures ----------------------------------------------------------------------------------------------------------------


def accuracy(records: Sequence[RankedRecord], prompt: Callable[[RankedRecord], object] = same_prompt) -> Accuracy:
    """The figures of the records' rewards over the strictly ordered pairs; `prompt` gives the key of a record's prompt."""
    prompts = _prompts(records, prompt)
    pairs, scored, right = (sum(getattr(each, name) for each in prompts) for name in ("pairs", "scored", "right"))
    all_right, whole = _plus_ratios(prompts)
    ties = sum(each.ties for each in prompts)
    return Accuracy(
        pairs=pairs,
        groups=len(prompts),
        acc=right / scored if scored else None,
        acc_plus=sum(all_right) / len(whole) if whole else None,
        acc_without_ties=right / (scored - ties) if scored > ties else None,
        scored=scored,
        right=right,
        ties=ties,
        scored_groups=len(whole),
        right_groups=sum(all_right),
        acc_interval=ratio_interval(*_ratios(prompts)) if scored else None,
        acc_plus_interval=ratio_interval(all_right, whole) if whole else None,
        longer_wins=sum(each.longer for each in prompts) / scored if scored else None,
    )


def _ratios(prompts: Sequence[_Prompt]) -> tuple[list[int], list[int]]:
    """Of ACC: (right pairs, scored pairs) of every prompt."""
    return [each.right for each in prompts], [each.scored for each in prompts]


def _plus_ratios(prompts: Sequence[_Prompt]) -> tuple[list[int], list[int]]:
    """Of ACC+: (whether all is right, 1) of every prompt that is scored whole."""
    whole = [each for each in prompts if each.scored == each.pairs]
    return [int(each.right == each.pairs) for each in whole], [1] * len(whole)


def figures(records: Sequence[RankedRecord], benchmark: Benchmark = ranked.BENCHMARK, grouping: str | None = None) -> Figures:
    """The figures of the records' rewards, grouped as the benchmark does. UserError for an unknown grouping."""
    _, how = benchmark.grouping(grouping)
    members, parts = grouped(records, how)
    ordered = sorted(members, key=lambda name: (_place(benchmark, name), name))
    groups = {name: accuracy(members[name], prompt=benchmark.prompt) for name in ordered}
    overall = accuracy(records, prompt=benchmark.prompt)
    means = [name for name in ordered if name not in parts and groups[name].pairs]
    lacking = [name for name in how.pairs if name not in means]  # groups of the benchmark that these records do not have
    macro = _macro([_prompts(members[name], benchmark.prompt) for name in means], whole=not lacking)
    return Figures(groups, parts, overall, macro, differences(benchmark, how, groups, overall))


def _macro(groups: Sequence[Sequence[_Prompt]], whole: bool) -> Macro:
    """The means over groups of prompts; none of part of a benchmark's groups (`whole` false), which would be another figure."""
    acc = [_ratios(prompts) for prompts in groups]
    plus = [_plus_ratios(prompts) for prompts in groups]
    return Macro(len(groups), *_mean(acc if whole else []), *_mean(plus if whole else []))


def _mean(ratios: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[float | None, Interval | None]:
    """(mean of sum(above) / sum(below), its interval); None without any, and if one of them is not defined."""
    if not ratios or not all(sum(below) for _, below in ratios):
        return None, None
    return sum(sum(above) / sum(below) for above, below in ratios) / len(ratios), mean_ratio_interval(ratios)


def grouped(records: Sequence[RankedRecord], how: Grouping) -> tuple[dict[str, list[RankedRecord]], frozenset[str]]:
    """(the records of every group, the names of those that are parts of another one)."""
    members: dict[str, list[RankedRecord]] = {}
    parts: set[str] = set()
    for record in records:
        group, *inner = how.groups(record)
        parts |= set(inner)
        for name in (group, *inner):
            members.setdefault(name, []).append(record)
    return members, frozenset(parts)


def beside(published: Published, found: Figures) -> list[float | None]:
    """The figures that stand beside a published table, one per column."""
    rows = {**found.groups, OVERALL: found.overall, MACRO: found.macro}
    return [None if column not in rows else getattr(rows[column], published.metric) for column in published.columns]


def _place(benchmark: Benchmark, name: str) -> int:
    return benchmark.order.index(name) if name in benchmark.order else len(benchmark.order)


def differences(benchmark: Benchmark, how: Grouping, groups: Mapping[str, Accuracy], overall: Accuracy) -> tuple[str, ...]:
    """What makes the figures others than those of the official benchmark: pairs that it does not have, or that are not
    scored."""
    found = []
    if benchmark.total is not None and overall.pairs != benchmark.total:
        found.append(f"{_pairs(overall.pairs)}, where {benchmark.title} has {benchmark.total:,}")
    for name, official in how.pairs.items():
        there = groups[name].pairs if name in groups else 0
        if there != official:
            found.append(f"{_pairs(there)} in {name}, where {benchmark.title} has {official:,}")
    if overall.scored < overall.pairs:
        found.append(f"{overall.pairs - overall.scored:,} of {_pairs(overall.pairs)} are not scored")
    return tuple(found)


def _pairs(count: int) -> str:
    return f"{count:,} pair{'' if count == 1 else 's'}"
