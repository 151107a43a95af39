"""What an answer says, for tasks whose metric compares the whole text of an answer with the right one (lmms-eval 0.7.3).

`tasks/pope` takes "Yes." and "Yes, there is a dog." for wrong. `tasks/mmmu_pro` reads a letter out of an answer only where the
question is a text; where it is in the picture, "A." and "(A)" are wrong.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmrlhf_jax.suite.harness.existence import existence

Columns = Mapping[str, Any]  # of a document

_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
# "A" and "I" may be words: "A cat", "I think", "Answer: A cat". Behind "is" they are none.
_LETTER = r"(?:[B-HJ-Z]\b(?!['’])|[AI]\b(?!['’]|\s+[a-z]))"
_FIRST = re.compile(r"[\W_]*(?:([A-Z])(?=[.):\]]|\*\*|\s*\n|,(?<!I,))|([B-HJ-Z])(?=\s+[a-z]))")
# What may stand between a word and the letter, as in "is: $\boxed{B}$" and "is option B".
_GAP = r"(?:[^\w.!?]|_|\\(?:boxed|text|mathbf|mathrm)\b|(?i:\b(?:option|choice)\b))*"
_STATED = re.compile(
    r"(?<!wrong )(?<!incorrect )\b(?i:answer(?:\s+(?:option|choice))?|(?:correct|right|best)\s+(?:option|choice))\b"
    rf"(?:(?i:\s+(?:is|(?:would|should|must|will)\s+be)\b){_GAP}([A-Z])\b(?!['’])|(?:[^\w.!?]|_)*[:=\n]{_GAP}({_LETTER}))"
)
_MENTIONED = re.compile(
    r"(?<!not )(?<!n't )(?<!wrong )(?<!incorrect )\b"
    rf"(?:(?i:answer|option|choice)\b(?:(?i:\s+is)\b)?[\W_]*({_LETTER})|(?i:option|choice)\s+(A)\b(?!['’]))"
)
_MARKED = re.compile(r"(?<!not )(?<!n't )[(\[{]([A-Z])(?=[)\]}])")  # also "\boxed{A}"
_CLOSED = r"[ \t)\]}*_\"'$]*"  # what may stand right behind a letter
_ANOTHER = re.compile(  # one more letter, as in "A or B" and "A, B and C"
    rf"{_CLOSED}(?:[,/&]|\b(?:or|and|nor)\b)(?:[\W_]|(?i:\b(?:or|and|nor|either|maybe|perhaps|options?|choices?)\b))*{_LETTER}"
)
_DENIED = re.compile(
    rf"{_CLOSED}\s(?:[a-z]+n['’]t\b|cannot\b|(?:is|was|looks|seems|can|could|does|would\s+be)\s+(?:[a-z]+ly\s+|also\s+)?"
    r"(?:not|wrong|incorrect|false)\b)"
)


def corrected(task: str, answer: str, row: Columns) -> str:
    """The answer as the task's metric can read it; the answer itself if it does not say what was asked."""
    reading = READINGS.get(task)
    found = None if reading is None else reading(answer, row)
    return answer if found is None else found


def letter(answer: str, row: Columns) -> str | None:
    """The letter of an option, of those that the document has: alone, behind "answer is", at the beginning, or as the only one
    behind "option" or in brackets. None for an answer that names several, and for an option that it denies."""
    options = ast.literal_eval(row["options"]) if isinstance(row["options"], str) else row["options"]
    letters = [chr(ord("A") + number) for number in range(len(options))]
    if (alone := _ALONE.fullmatch(answer)) is not None:
        return alone[1].upper()
    if stated := _found(_STATED.finditer(answer), letters):
        return _only(stated[-1:])
    if (first := _FIRST.match(answer)) is not None and (found := _found([first], letters)):
        return _only(found)
    return _only(_found(_MENTIONED.finditer(answer), letters) or _found(_MARKED.finditer(answer), letters))


def _found(matches: Iterable[re.Match[str]], letters: Sequence[str]) -> list[re.Match[str]]:
    """Those matches whose letter is that of an option, and is not denied right behind it."""
    return [each for each in matches if each[each.lastindex] in letters and not _DENIED.match(each.string, each.end())]


def _only(matches: Sequence[re.Match[str]]) -> str | None:
    """The letter of all these matches; None if there are several, or none."""
    if any(_ANOTHER.match(each.string, each.end()) for each in matches):
        return None
    found = {each[each.lastindex] for each in matches}
    return found.pop() if len(found) == 1 else None


READINGS: Mapping[str, Callable[[str, Columns], str | None]] = {
    "pope_adv": existence,
    "pope_pop": existence,
    "pope_random": existence,
    "mmmu_pro_vision": letter,
}
