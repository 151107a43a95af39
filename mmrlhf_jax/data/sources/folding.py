"""Folds pairs back into ranking groups: the inverse of `RankedRecord.pairs`.

MM-RLHF publishes every strictly ordered pair of a weak order, one per row, and no row for a tie. So among the rows with the
same (id, media, prompt), two responses that no row compares are tied, and the weak order can be recovered exactly.

- Rows that contradict each other (a cycle of preferences) are an error that names their group (`ContradictingPairs`). A caller
  may leave out such groups, but only completely.
- Rows that are consistent but are not all pairs of a weak order (of a truncated or filtered file, for example) are not
  completed: each row becomes a record of its own, so that no preference is lost or invented.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from mmrlhf_jax.data.sources.fields import Media, media_in_place, pop_id, pop_optional_text
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.records import Pair, RankedRecord, Response, is_blank, strict_pairs, under_free_names

# Prefixes of fields that belong to a pair, even if all pairs of a group have the same value.
_PAIR_FIELDS = ("ls_factor", "mixed_up_image", "reference_", "mix_reference_")


@dataclasses.dataclass(frozen=True)
class PairRow:
    """One row of a pair file. A row with `id` None is a group of its own. `extra` are its unknown fields.

    `also_rejected` are further answers that the chosen one is preferred to; their order among each other is unknown.
    """

    where: str
    id: str | None
    images: tuple[str, ...]
    video: str | None
    prompt: str
    chosen: str
    rejected: str
    chosen_reason: str | None = None
    rejected_reason: str | None = None
    is_tie: bool = False
    source: str | None = None
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    also_rejected: tuple[str, ...] = ()

    def pairs(self) -> list[PairRow]:
        """One row for each rejected answer."""
        one = dataclasses.replace(self, also_rejected=())
        return (
            [one, *(dataclasses.replace(one, rejected=text) for text in self.also_rejected)] if self.also_rejected else [self]
        )


def pair_row(data: dict[str, Any], where: str, media: Media, prompt: str, chosen: str, rejected: str) -> PairRow:
    """A PairRow. Id, source and tie flag are taken from `data`, whose remaining fields become `extra`.

    Tags in the prompt are the places of the media. Raises WrongMedia if they do not match.
    """
    images, video = media
    is_tie = pop_tie(data, where)
    return PairRow(
        where=where,
        id=pop_id(data, where),
        images=images,
        video=video,
        prompt=media_in_place(prompt, media, where),
        chosen=chosen,
        rejected=rejected,
        is_tie=is_tie,
        source=pop_optional_text(data, "source", where),
        extra=data,
    )


def pop_tie(data: dict[str, Any], where: str) -> bool:
    """The value of `is_tie` or `tie`: whether neither answer is better; False if absent. UserError if it is no bool."""
    said = {name: data.pop(name) for name in ("is_tie", "tie") if name in data}
    for name, value in said.items():
        if not isinstance(value, bool | None):
            raise UserError(f"{where}: field {name!r} must be true or false, found {shown(value)}")
    if len(values := {value for value in said.values() if value is not None}) > 1:
        raise UserError(f"{where}: fields 'is_tie' and 'tie' say different things; keep one of them")
    return True in values


def fold(rows: Sequence[PairRow]) -> list[RankedRecord]:
    """The ranking groups, in the order of their first rows, with responses best first.

    Fields of single pairs (`ls_factor`, `reference_*` and any field that differs between the rows of a group) are kept in the
    record's `extra["pairs"]`, as `{"chosen": index, "rejected": index, field: value, ...}`. Two groups with the same id (but
    other media or another prompt) get the ids `id` and `id#2`. Raises ContradictingPairs, which names the groups whose rows
    contradict each other.
    """
    groups: dict[Any, list[PairRow]] = {}
    for number, row in enumerate(rows, start=1):
        key = number if row.id is None else (row.id, row.images, row.video, row.prompt)
        groups.setdefault(key, []).append(row)
    records: list[RankedRecord] = []
    contradictions: list[str] = []
    members: list[int] = []
    numbers = {id(row): number for number, row in enumerate(rows)}
    taken: set[str] = set()
    for key, group in groups.items():
        name = f"row-{key}" if group[0].id is None else group[0].id
        pairs = [pair for row in group for pair in row.pairs()]
        try:
            folded = _fold_group(pairs)
        except Contradiction as error:
            contradictions.append(f"{shown(name)} ({pairs[error.row].where}: {error})")
            members += [numbers[id(row)] for row in group]
            continue
        for record in folded:
            records.append(dataclasses.replace(record, id=free_id(name, taken)))
    if contradictions:
        raise ContradictingPairs(contradictions, members)
    return records


class ContradictingPairs(UserError):
    """The rows of some groups contradict each other. `groups` names these groups; `rows` are the indices of their rows."""

    def __init__(self, groups: list[str], rows: list[int]) -> None:
        more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
        super().__init__(
            f"pairs contradict each other under id {', '.join(groups[:5])}{more}; correct or remove these rows, or build with"
            " --contradictions drop to leave these groups out"
        )
        self.groups, self.rows = groups, rows


class Contradiction(ValueError):
    """No order satisfies the rows of a group; `row` is the index of a row in the cycle."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


def weak_order(size: int, pairs: Sequence[Pair], ties: Iterable[Pair] = ()) -> list[int] | None:
    """Ranks (1 = best, equal = tie) of `size` responses whose strictly ordered pairs are exactly `pairs`.

    None if the pairs are consistent but are not all pairs of a weak order. Raises Contradiction for a cycle.
    """
    beaten_by = [{i for i, j in pairs if j == response} for response in range(size)]
    ranks = [0] * size
    left, rank = set(range(size)), 0
    while left:
        rank += 1
        tier = {response for response in left if not beaten_by[response] & left}
        if not tier:
            row = next(row for row, (i, j) in enumerate(pairs) if _is_above(j, i, pairs))
            raise Contradiction("its rejected response is also preferred to its chosen one", row)
        for response in tier:
            ranks[response] = rank
        left -= tier
    exact = set(strict_pairs(ranks)) == set(pairs) and all(ranks[i] == ranks[j] for i, j in ties)
    return ranks if exact else None


def _is_above(upper: int, lower: int, pairs: Sequence[Pair]) -> bool:
    """Whether `upper` is preferred to `lower`, directly or through other responses."""
    reached = {upper}
    while grown := {j for i, j in pairs if i in reached} - reached:
        reached |= grown
    return lower in reached


def _fold_group(rows: list[PairRow]) -> list[RankedRecord]:
    texts = list(dict.fromkeys(text for row in rows for text in (row.chosen, row.rejected)))
    index = {text: i for i, text in enumerate(texts)}
    for number, row in enumerate(rows):
        if row.chosen == row.rejected and not row.is_tie:
            raise Contradiction("chosen and rejected are the same text", number)
    edges = [(index[row.chosen], index[row.rejected]) for row in rows]
    strict = [number for number, row in enumerate(rows) if not row.is_tie]
    ties = [edge for edge, row in zip(edges, rows, strict=True) if row.is_tie]
    try:
        ranks = weak_order(len(texts), [edges[number] for number in strict], ties)
    except Contradiction as error:
        raise Contradiction(str(error), strict[error.row]) from None
    if ranks is not None:
        return [_record(rows, dict(zip(texts, ranks, strict=True)))]
    return [_record([row], {row.chosen: 1, row.rejected: 1 if row.is_tie else 2}) for row in rows]


def _record(rows: list[PairRow], ranks: dict[str, int]) -> RankedRecord:
    """The record of one group. `ranks` maps a response's text to its rank, in order of first appearance."""
    texts = sorted(ranks, key=ranks.__getitem__)
    first = rows[0]
    shared = {
        name: value
        for name, value in first.extra.items()
        if not name.startswith(_PAIR_FIELDS) and all(name in row.extra and row.extra[name] == value for row in rows)
    }
    pairs = []
    for row in rows:
        own = {name: value for name, value in row.extra.items() if name not in shared}
        if own:
            place = {"chosen": texts.index(row.chosen), "rejected": texts.index(row.rejected)}
            pairs.append(place | under_free_names(own, place.keys()))
    return RankedRecord(
        id=first.id or "",  # `fold` sets it
        prompt=first.prompt,
        responses=tuple(_response(text, ranks[text], rows) for text in texts),
        images=first.images,
        video=first.video,
        source=first.source,
        extra=(under_free_names(shared, {"pairs"}) | {"pairs": pairs}) if pairs else shared,
    )


def _response(text: str, rank: int, rows: list[PairRow]) -> Response:
    reasons = [row.chosen_reason for row in rows if row.chosen == text]
    reasons += [row.rejected_reason for row in rows if row.rejected == text]
    critiques = list(dict.fromkeys(reason for reason in reasons if reason and not is_blank(reason)))
    # Usually each row repeats the response's only critique. If rows differ, all critiques are kept in `extra`.
    extra = {"critiques": critiques} if len(critiques) > 1 else {}
    return Response(text=text, rank=rank, critique=critiques[0] if critiques else None, extra=extra)


def free_id(name: str, taken: set[str]) -> str:
    """The name, or `name#2` (`#3`, ...) if it is in `taken`; the result is added to `taken`."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}#{number}"
    taken.add(free)
    return free
