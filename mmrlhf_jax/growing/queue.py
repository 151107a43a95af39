"""Which records people look through: a few chosen by chance, and those where a look is worth most.

- `random`, a tenth: drawn from all records, whatever else is true of them. These alone tell how often the critic is right.
- `disagreement`, 45 %: the critic orders two answers otherwise than people, or a second critic, did before.
- `near-tie`, the rest: the two best answers have almost the same reward.
- `remaining`, where these are too few: whatever else there is to compare.

Each part is spread over the records' sources as these are among the records that it is drawn from.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from mmrlhf_jax.data.digests import text_digest
from mmrlhf_jax.records import RankedRecord, Response, strict_pairs

RANDOM, DISAGREEMENT, NEAR_TIE, REMAINING = REASONS = ("random", "disagreement", "near-tie", "remaining")
PERCENT_RANDOM, PERCENT_DISAGREEMENT = 10, 45  # of the budget; near ties have the rest

# What others think of a record's answers: for each of them, a rank per response (None: not known).
Others = Sequence[Sequence[int | None]]


def select(
    records: Sequence[RankedRecord], budget: int, seed: int, others: Mapping[int, Others], before: Mapping[int, str]
) -> dict[int, str]:
    """Index -> why the record is in the queue, for `budget` records, or as many as there are with two different answers.

    `others` are ranks by people or another critic, by index. `before` is an earlier queue of the same records and seed with a
    smaller budget, all of which stays in the queue; a record of it that chance would have drawn as well is `random` then.
    """
    reviewable = [index for index, record in enumerate(records) if is_reviewable(record)]
    source = lambda index: records[index].source or ""
    by_chance = _spread(reviewable, source, random.Random(f"review {seed}").random)
    found = dict(before) | dict.fromkeys(by_chance[: math.ceil(budget * PERCENT_RANDOM / 100)], RANDOM)

    strengths = {index: disagreement(records[index], others.get(index, ())) for index in reviewable}
    disagreed = _best_spread([index for index in reviewable if strengths[index] > 0], source, lambda i: -strengths[i])
    margins = {index: margin for index in reviewable if (margin := first_margin(records[index])) is not None}
    near = _best_spread(margins, source, margins.__getitem__)

    wanted = budget * PERCENT_DISAGREEMENT // 100 - sum(why == DISAGREEMENT for why in found.values())
    _take(found, disagreed, DISAGREEMENT, min(wanted, budget - len(found)))
    _take(found, near, NEAR_TIE, budget - len(found))
    _take(found, disagreed, DISAGREEMENT, budget - len(found))  # where near ties are fewer than their share
    _take(found, by_chance, REMAINING, budget - len(found))
    return found


def is_reviewable(record: RankedRecord) -> bool:
    """Whether there are two different answers to compare."""
    return len({response.text for response in record.responses}) > 1


def first_margin(record: RankedRecord) -> float | None:
    """How much more reward the best answer has than the second, of those without flags; None if there are not two."""
    rewards = sorted((response.reward for response in record.responses if _is_sound(response)), reverse=True)
    return rewards[0] - rewards[1] if len(rewards) > 1 else None


def _is_sound(response: Response) -> bool:
    return not response.extra.get("flags") and response.reward is not None


def disagreement(record: RankedRecord, others: Others) -> float:
    """The largest margin by which the critic prefers an answer to one that another judge ranks above it; 0 if there is none."""
    largest = 0.0
    for ranks in others:
        for better, worse in strict_pairs(ranks):
            one, other = record.responses[better], record.responses[worse]
            if None not in (one.reward, other.reward, one.rank, other.rank) and one.rank > other.rank:
                largest = max(largest, other.reward - one.reward)
    return largest


def human_ranks(record: RankedRecord) -> list[int | None]:
    """The ranks that people gave before the critic came."""
    return [response.extra.get("human_rank") for response in record.responses]


def ranks_elsewhere(record: RankedRecord, other: RankedRecord) -> list[int | None]:
    """The ranks of the record's answers in another ranking of the same prompt, where it has the same texts."""
    known = {text_digest(response.text): response.rank for response in other.responses}
    return [known.get(text_digest(response.text)) for response in record.responses]


def _take(found: dict[int, str], ordered: Iterable[int], why: str, count: int) -> None:
    left = [index for index in ordered if index not in found]
    found |= dict.fromkeys(left[: max(count, 0)], why)


def _best_spread(indices: Iterable[int], source: Callable[[int], str], key: Callable[[int], float]) -> list[int]:
    """By `key` within each source; every beginning of the list has each source's share."""
    return _interleaved(sorted(indices, key=lambda index: (key(index), index)), source)


def _spread(indices: Sequence[int], source: Callable[[int], str], draw: Callable[[], float]) -> list[int]:
    """By chance within each source; every beginning of the list has each source's share."""
    drawn = {index: draw() for index in indices}
    return _interleaved(sorted(indices, key=drawn.__getitem__), source)


def _interleaved(ordered: Sequence[int], source: Callable[[int], str]) -> list[int]:
    sizes = collections.Counter(map(source, ordered))
    seen: collections.Counter[str] = collections.Counter()
    places = {}
    for index in ordered:
        name = source(index)
        places[index] = (seen[name] + 0.5) / sizes[name]
        seen[name] += 1
    return sorted(ordered, key=places.__getitem__)
