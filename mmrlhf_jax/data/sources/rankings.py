"""Reads rankings of responses, such as the `final_ranking` field of MM-RLHF annotations, in every notation of a weak order.

The release does not document the field, so every form with an unambiguous meaning is accepted:

    "1>2=3>4", "[B > A = C]"        tiers of responses, best first; responses by number (from 1 or 0) or letter
    [[1], [2, 3], [4]], [1, [2, 3]] the same as nested lists
    ["B", "A", "C"]                 letters, best first
    [1, 3, 2, 1], "1,3,2,1"         one number per response, 1 = best, equal = tie

A flat list with each number once may also be an order of responses, best first. All values of a file are assumed to have the
same meaning: if numbers are repeated anywhere, they are ranks; else the meaning that agrees better with the human scores is
taken; if both agree equally well, it is an error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from mmrlhf_jax import strict_json
from mmrlhf_jax.errors import UserError, shown

Ranks = list[int]  # per response, 1 = best, equal = tie, no gaps


def read_rankings(
    values: Sequence[Any],
    sizes: Sequence[int],
    scores: Sequence[Sequence[float | None]],
    where: Sequence[str],
    field: str = "final_ranking",
) -> list[Ranks | None]:
    """The ranks of the responses of every record of one file; None for a record that is not ranked.

    `values[i]` is the field's value (None = not ranked), `sizes[i]` the number of responses, `scores[i]` the mean human score
    of each response or None, `where[i]` the beginning of error messages. Raises UserError for a value that is invalid or
    ambiguous.
    """
    ranks: list[Ranks | None] = [None] * len(values)
    flat: list[int] = []
    numbers: dict[int, list[float]] = {}
    for i, value in enumerate(values):
        if value is None:
            continue
        kind, parsed = check_ranking(value, sizes[i], where[i], field)
        if kind == "tiers":
            ranks[i] = _from_tiers(parsed, sizes[i])
        else:
            flat.append(i)
            numbers[i] = parsed
    orders = {i: order for i in flat if (order := _as_order(numbers[i])) is not None}
    as_ranks = len(orders) < len(flat) or _reads_as_ranks(numbers, orders, scores, values, where, field)
    for i in flat:
        ranks[i] = _dense(numbers[i]) if as_ranks else _from_tiers([[j] for j in orders[i]], sizes[i])
    return ranks


def check_ranking(value: Any, size: int, where: str, field: str = "final_ranking") -> tuple[str, Any] | None:
    """The parsed field (see `_parse`); None if it is None. Raises UserError for an invalid value."""
    if value is None:
        return None
    try:
        return _parse(value, size)
    except ValueError as error:
        raise UserError(f"{where}: field {field!r} is {shown(value)}, {error}") from None


def _reads_as_ranks(
    numbers: dict[int, list[float]],
    orders: dict[int, list[int]],
    scores: Sequence[Sequence[float | None]],
    values: Sequence[Any],
    where: Sequence[str],
    field: str,
) -> bool:
    """Whether the flat lists of a file are ranks per response (True) or orders of responses (False). UserError if both agree
    equally well with the scores."""
    as_ranks = {i: _dense(numbers[i]) for i in orders}
    as_order = {i: _from_tiers([[j] for j in order], len(order)) for i, order in orders.items()}
    unlike = [i for i in orders if as_ranks[i] != as_order[i]]
    if not unlike:
        return True
    agreement = sum(_agreement(as_ranks[i], scores[i]) - _agreement(as_order[i], scores[i]) for i in unlike)
    if agreement == 0:
        first = unlike[0]
        raise UserError(
            f"{where[first]}: field {field!r} is {shown(values[first])}, which can be a rank per response or an "
            "order of responses, and the scores do not tell which; write it as a string such as '1>2=3'"
        )
    return agreement > 0


def _agreement(ranks: Ranks, scores: Sequence[float | None]) -> int:
    """The number of pairs that ranks and scores order alike minus the number that they order oppositely."""
    total = 0
    for i, a in enumerate(scores):
        for j, b in enumerate(scores[:i]):
            if a is not None and b is not None and a != b and ranks[i] != ranks[j]:
                total += 1 if (a > b) == (ranks[i] < ranks[j]) else -1
    return total


def _parse(value: Any, size: int) -> tuple[str, Any]:
    """("tiers", response indices per tier, best first) or ("numbers", one per response)."""
    if isinstance(value, str):
        value = _parse_string(value)
    if not isinstance(value, list):
        raise ValueError("which is not a list or a string of responses")
    if any(isinstance(item, list) for item in value) or any(_is_letter(item) for item in value):
        tiers = [item if isinstance(item, list) else [item] for item in value]
        return "tiers", _resolve_labels(tiers, size)
    numbers = [_number(item) for item in value]
    if len(numbers) != size:
        raise ValueError(f"which has {len(numbers)} numbers for {size} responses")
    if not all(0 <= number <= size for number in numbers):
        raise ValueError(f"which has a number that is no rank of {size} responses")
    return "numbers", numbers


def _parse_string(text: str) -> list[Any]:
    # NFKC turns full-width signs, which some annotators typed, into ASCII.
    text = unicodedata.normalize("NFKC", text).strip()
    if text.startswith("[") and not re.search("[>=]", text):
        try:
            return strict_json.loads(text)
        except strict_json.NotStrict as error:
            raise ValueError(f"which is no ranking: {error.msg}") from None
        except strict_json.JSONDecodeError:
            pass  # "[A, B]": letters without quotes
        except RecursionError:
            raise ValueError("which is nested too deeply") from None
    text = text.strip("[](){} \t")
    if re.search("[>=]", text):
        return [[label.strip() for label in tier.split("=")] for tier in text.split(">")]
    return [label for label in re.split(r"[,;\s]+", text) if label]


def _resolve_labels(tiers: list[list[Any]], size: int) -> list[list[int]]:
    """Labels (letters, or numbers from 1 or from 0) to response indices; each response must be named once."""
    labels = [label for tier in tiers for label in tier]
    if all(_is_letter(label) for label in labels):
        indices = [[ord(label.strip().upper()) - ord("A") for label in tier] for tier in tiers]
    else:
        indices = [[int(number) if (number := _number(label)).is_integer() else -1 for label in tier] for tier in tiers]
        base = min((index for tier in indices for index in tier), default=0)
        indices = [[index - (1 if base == 1 else 0) for index in tier] for tier in indices]
    if sorted(index for tier in indices for index in tier) != list(range(size)):
        raise ValueError(f"which does not name each of the {size} responses once")
    return indices


def _as_order(numbers: list[float]) -> list[int] | None:
    """The numbers as response indices, best first, if they name each response once; else None."""
    for base in (1, 0):
        if sorted(numbers) == list(range(base, base + len(numbers))):
            return [int(number) - base for number in numbers]
    return None


def _from_tiers(tiers: list[list[int]], size: int) -> Ranks:
    ranks = [0] * size
    for rank, tier in enumerate(tiers, start=1):
        for index in tier:
            ranks[index] = rank
    return ranks


def _dense(numbers: list[float]) -> Ranks:
    levels = sorted(set(numbers))
    return [levels.index(number) + 1 for number in numbers]


def _is_letter(item: Any) -> bool:
    return isinstance(item, str) and re.fullmatch("[A-Za-z]", item.strip()) is not None


def _number(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, (int, float, str)):
        raise ValueError(f"which holds {shown(item)}, neither a number nor a letter")
    try:
        return float(item)
    except (ValueError, OverflowError):
        raise ValueError(f"which holds {shown(item)}, neither a number nor a letter") from None
