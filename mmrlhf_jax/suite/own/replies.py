"""Readers of judges' replies. Each returns None for a reply that is not what was asked for."""

from __future__ import annotations

import re

# The word, unless it is part of a phrase that says neither, as "no doubt" is.
_VERDICT = r"(yes|no)(?![a-z0-9])(?!\s+(?:doubt|way|idea|clue|longer)\b)"
_BOTH = r"[\W_]*(?:\bor\b|\band\b|/|&)[\W_]*"
_CHOICE = re.compile(rf"yes{_BOTH}no\b|no{_BOTH}yes\b")  # "yes or no", "yes/no", "yes and no"
_FIRST_WORD = re.compile(rf"[\W_]*{_VERDICT}")
_AFTER_ANSWER = re.compile(rf"\b(?:answer|verdict)\b(?:\s+(?:is|would be))?[\W_]*{_VERDICT}")
_BOLD = re.compile(rf"\*\*[\W_]*{_VERDICT}[\W_]*\*\*")
_BEFORE = r"so|thus|hence|therefore|then|overall|finally|it says|i (?:would )?say"
_SENTENCE = re.compile(rf"(?:(?:{_BEFORE})[\s,:]+)*[\W_]*{_VERDICT}[\W_]*")

# What stands behind the word "rating": the scale may come before the number, which is no part of a range.
_SCALE = r"0\s*(?:-|–|to)\s*6\b"
_RATING = re.compile(
    rf"\brating\W{{1,5}}?(?:[(\[][^()\[\]\n]*{_SCALE}[^()\[\]\n]*[)\]]\W{{1,5}}?|{_SCALE}\W{{1,5}}?)?"
    r"(?<![-–\d.])(\d+(?:\.\d+)?)(?![\d.]*\d|\s*(?:-|–|to)\s*\d)"
)

# Nothing but two numbers, what separates them, and marks of Markdown or a full stop around them.
_TWO_SCORES = re.compile(r"[\s*_`]*(\d+(?:\.\d+)?)[*_`]*(?:\s*[,;]\s*|\s+)[*_`]*(\d+(?:\.\d+)?)[\s*_`.]*")


def yes_or_no(reply: str) -> bool | None:
    """Whether a reply says yes: by its first word, by what follows "answer", by the word in bold, or by its last sentence.

    A lone "no" anywhere else is no verdict, as in "There is no way to say", nor is it one if two of these say different things.
    """
    text = without_choice(reply.lower()).strip()
    if (first := _FIRST_WORD.match(text)) is not None:
        return first[1] == "yes"
    sentences = [each for each in re.split(r"[.!?;:,]\s+|\n", text) if each.strip()]
    last = _SENTENCE.fullmatch(sentences[-1].strip()) if sentences else None
    found = {*behind_answer(text), *_BOLD.findall(text), *([last[1]] if last else [])}
    return found == {"yes"} if len(found) == 1 else None


def behind_answer(text: str) -> set[str]:
    """Which of "yes" and "no" follow the word "answer" or "verdict" in a text of lower-case letters."""
    return set(_AFTER_ANSWER.findall(text))


def without_choice(text: str) -> str:
    """A text of lower-case letters without "yes or no", which repeats what was asked, and "yes and no", which says neither."""
    return _CHOICE.sub(" ", text)


def contains_yes(reply: str) -> bool | None:
    """Whether the letters "yes" stand anywhere in a reply, as the paper's code reads it; None without "no" as well."""
    text = reply.lower()
    return True if "yes" in text else False if "no" in text else None


def rating(reply: str) -> int | None:
    """The one rating from 0 to 6 that a reply gives behind the word "rating"; of 4.5 the 4, as the published code reads it."""
    found = {int(float(each)) if float(each) <= 6 else None for each in _RATING.findall(reply.lower())}
    return found.pop() if len(found) == 1 else None


def two_scores(reply: str) -> tuple[float, float] | None:
    """The scores of two assistants, from 0 to 10, which are alone on the first line. The first one is above 0.

    (lmms-eval takes the first two numbers of the line, whatever they are: of "Assistant 1: 9" the 1 and the 9, of "8/10" both.)
    """
    found = _TWO_SCORES.fullmatch(reply.strip().split("\n")[0])
    if found is None:
        return None
    first, second = map(float, found.groups())
    return (first, second) if 0 < first <= 10 and second <= 10 else None
