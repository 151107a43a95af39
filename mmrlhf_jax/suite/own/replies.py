"""Readers of judges' replies. Each returns None for a reply that is not what was asked for."""

from __future__ import annotations

import re

from mmrlhf_jax.suite.judges.judging import NotRead


def yes_or_no(reply: str) -> bool | None:
    """Whether a reply says yes: by its first word, or by the only one of the two words in it."""
    words = re.findall(r"[a-z]+", reply.lower())
    found = {word for word in words if word in ("yes", "no")}
    if words and words[0] in found:
        return words[0] == "yes"
    return found == {"yes"} if len(found) == 1 else None


def contains_yes(reply: str) -> bool | None:
    """Whether the letters "yes" stand anywhere in a reply, as the paper's code reads it; None without "no" as well."""
    text = reply.lower()
    return True if "yes" in text else False if "no" in text else None


def rating(reply: str) -> int | None:
    """The one rating from 0 to 6 that a reply gives behind the word "rating"."""
    found = re.findall(r"rating\W{1,5}(\d+(?:\.\d+)?)", reply.lower())
    ratings = set(found)
    return int(found[0]) if len(ratings) == 1 and found[0] in map(str, range(7)) else None


def two_scores(reply: str) -> tuple[float, float] | None:
    """The scores of two assistants, from 0 to 10, on the first line, which has no other number. The first one is above 0."""
    line = reply.strip().split("\n")[0]
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", line)]
    if len(numbers) != 2 or not all(0 <= number <= 10 for number in numbers) or numbers[0] == 0:
        return None
    return numbers[0], numbers[1]


def known(found):
    """What a reader has found. NotRead if it has found nothing."""
    if found is None:
        raise NotRead
    return found
