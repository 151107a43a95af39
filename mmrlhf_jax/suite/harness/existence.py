"""Whether an answer says that there is something in a picture, for POPE.

POPE's own evaluation, `evaluate.py` of RUCAIBox/POPE, takes an answer for a no if its first sentence has the word "no" or
"not", and every other one for a yes, also an empty one. Here a yes must be said, and a "not" must deny that there is something:
"I do not know" and "There is a dog, not a cat" say neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.suite.own import replies

_NOT = r"(?:\bnot|n't|\bcannot)"
_HOW = r"(?:\s+(?:(?!only\b)[a-z]+ly|quite|very|yet|even|so|too|100%))*"  # adverbs
_TELL = r"(?:tell|say|know|determine|decide|confirm|verify|answer|judge)"
_SEE = r"(?:see|find|spot|notice|detect|observe|recogni[sz]e|identify|locate|discern|make\s+out)"
_SHOW = r"(?:show|contain|include|have|depict|feature|display|exist|appear|seem|look|portray|think|believe)"
_SEEM = r"(?:\s+(?:seem|appear|look)(?:\s+to\s+be)?)?"

# Words by which somebody says that he does not know; with the rest of their clause, in which a "no" or "yes" says nothing.
_UNKNOWN = re.compile(
    rf"(?:{_NOT}{_SEEM}{_HOW}\s+(?:sure|certain|clear|confident|enough|understand|{_TELL}\b(?!\s+yes\b)|be\s+(?:sure|certain|{_TELL}e?d)"
    rf"|have\s+(?:an?|any|enough|the)\s+(?:idea|clue|information)|(?:able|possible|easy)\s+(?:for\s+[a-z]+\s+)?to\s+{_TELL})\b"
    rf"|\bno\s+(?:idea|clue|telling|information|way\s+(?:to|of))\b|\b(?:unsure|uncertain|unclear|unknown|unable\s+to\s+{_TELL})\b"
    rf"|\b(?:hard|difficult|impossible)\s+to\s+{_TELL}\b|{_NOT}\s+(?:[a-z]+\s+)?no\b).*?(?=[,;]|\bbut\b|$)"
)
_CERTAIN = re.compile(r"\bno\s+(?:doubt|question|wonder)\b")
# "There is a dog, but no cat": of what was asked for it may say either.
_CONTRAST = re.compile(
    r"^(there(?:'s|\s+(?:is|are))\s+(?:an?|one|two|some|several|many)\b[^,;]*?)"
    r"(?:[,;]\s*(?:but\s+|and\s+)?|\s(?:but|and)\s+)no\s.*"
)
_NO_OBJECT = (
    r"(?!\s+(?:whether|if|what|how|why|clearly|well|enough|i\b|(?:the|this|that|an?|any|your)\s+(?:image|picture|photo)))"
)
_THERE = (
    r"(?:an?|any|the|one|present|visible|there|here|in|on|at|within|among|shown|seen|depicted|pictured|included|contained|found"
    r"|featured|displayed|part|anywhere|to\s+be\s+seen)"
)
_DENIAL = re.compile(
    rf"\bno\b|^\W*(?:(?:[a-z]+ly|well|so)\W+)?not\b(?!\s+(?:only|just|always))"
    rf"|\bthere(?:'s|\s+(?:is|are|was|were)){_HOW}(?:\s+not|n't)\b(?!\s+(?:only|just))"
    rf"|\b(?:is|are|was|were|has|have|[a-z]+'s)(?:\s+not|n't)(?:{_HOW}\s+{_THERE}\b(?!\s+(?:only|doubt|question)\b)|\W*$)"
    rf"|{_NOT}{_HOW}\s+(?:be\s+(?:seen|found|visible|there|present|an?|any)|able\s+to\s+{_SEE}|{_SEE}|{_SHOW})\b{_NO_OBJECT}"
    rf"|{_NOT}\s+(?:[a-z]+\s+){{0,2}}[\W_]*yes\b"
)


def existence(answer: str, row: Mapping[str, Any]) -> str | None:
    """Whether an answer says "yes" or "no": by its first word, by what follows "answer", or by its first sentence. None if it
    says neither. `row` are the columns of the document."""
    text = replies.without_choice(answer.lower().replace("’", "'"))
    text = "\n".join(_UNKNOWN.sub(" ", _CERTAIN.sub(" ", sentence)) for sentence in re.split(r"(?<=[.!?。！？])|\n", text))
    first = re.split(r"[.!?\n。！？]", text.strip(" \t\n.*_\"'`"))[0]
    words = re.findall(r"[a-z']+", first)
    if words and words[0] in ("yes", "no"):
        return words[0]
    if len(stated := replies.behind_answer(text)) == 1:
        return stated.pop()
    if _DENIAL.search(_CONTRAST.sub(r"\1", first)):
        return "no"
    return "yes" if "yes" in words else None
