"""What an answer says, for tasks whose metric compares the whole text of an answer with the right one (lmms-eval 0.7.3).

`tasks/pope` takes "Yes." and "Yes, there is a dog." for wrong. `tasks/mmmu_pro` reads a letter out of an answer only where the
question is a text; where it is in the picture, "A." and "(A)" are wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

Columns = Mapping[str, Any]  # of a document

_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
# "A" and "I" may be words: "A cat", "I think", "Answer: A cat". Behind "is" they are none.
_FIRST = re.compile(r"[\W_]*(?![A-Z]\W*\b(?:or|and)\b)(?:([A-Z])(?:[.):\]]|\*\*|\s*\n|,(?<!I,))|([B-HJ-Z])\s+[a-z])")
_STATED = re.compile(
    r"\b(?i:answer|option|choice)\b(?:(?i:\s+is)\b[\W_]*([A-Z])\b(?!['’])|[\W_]*(?:([B-HJ-Z])\b|([AI])\b(?!['’]|\s+[a-z])))"
)
_MARKED = re.compile(r"[(\[{]([A-Z])[)\]}]")  # also "\boxed{A}"


def corrected(task: str, answer: str, row: Columns) -> str:
    """The answer as the task's metric can read it; the answer itself if it does not say what was asked."""
    reading = READINGS.get(task)
    found = None if reading is None else reading(answer, row)
    return answer if found is None else found


def existence(answer: str, row: Columns) -> str | None:
    """Whether an answer says that there is something: by its first word, or by its first sentence, where "no" or "not" denies.

    POPE's own evaluation, `evaluate.py` of RUCAIBox/POPE, takes every other answer for a yes, also an empty one; here "yes"
    must be said.
    """
    first = re.split(r"[.!?\n。！？]", answer.lower().strip(" \t\n.*_\"'`"))[0]
    words = re.findall(r"[a-z']+", first)
    if words and words[0] in ("yes", "no"):
        return words[0]
    if {"no", "not", "isn't", "aren't"} & set(words):
        return "no"
    return "yes" if "yes" in words else None


def letter(answer: str, row: Columns) -> str | None:
    """The letter of an option, of those that the document has: alone, at the beginning, behind "answer", or as the only one in
    brackets."""
    options = ast.literal_eval(row["options"]) if isinstance(row["options"], str) else row["options"]
    letters = [chr(ord("A") + number) for number in range(len(options))]
    if (alone := _ALONE.fullmatch(answer)) is not None:
        return alone[1].upper()
    first = _FIRST.match(answer)
    stated = [each for found in _STATED.findall(answer) for each in found if each in letters]
    if first is not None and (found := first[1] or first[2]) in letters:
        return found
    if stated:
        return stated[-1]
    marked = {each for each in _MARKED.findall(answer) if each in letters}
    return marked.pop() if len(marked) == 1 else None


READINGS: Mapping[str, Callable[[str, Columns], str | None]] = {
    "pope_adv": existence,
    "pope_pop": existence,
    "pope_random": existence,
    "mmmu_pro_vision": letter,
}
