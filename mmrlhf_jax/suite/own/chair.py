"""CHAIR: which of the objects that an answer names are not in the picture (arXiv 1809.02156, section 3.1).

    CHAIR_i = objects that are named and not there / objects that are named
    CHAIR_s = answers that name an object that is not there / answers

Objects are the 80 of COCO with their synonyms: `coco_objects.txt` is the list of LisaAnne/Hallucination (`data/synonyms.txt`)
with the four words that yfzhang114/mmrlhf-eval adds (`tasks/objecthallusion`), whose rules these are. It looks words up with
NLTK's tokenizer and WordNet, whose data must be downloaded; here both are a few lines, because no other words than those of the
list matter. The differences: words that a slash, a full stop without space or an underscore joins are told apart, "vases" is
"vase" (WordNet has it from "vas"), and "iPhone" is found, which stands in the list with a capital letter.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrlhf_jax.suite.own.grader import Columns, Graded, Grader, check_text, check_texts

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_VEHICLES = ("jet", "train")
# Two words that are one object, or none of the list: what they are taken for.
_PAIRS = {
    "home plate": "home plate",
    "train track": "train track",
    "bow tie": "tie",
    "toilet seat": "toilet",
    **{f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")},
    **{f"passenger {vehicle}": vehicle for vehicle in _VEHICLES},
}

# WordNet's rules for the endings of nouns (morphy(7WN)), and plurals of listed words that no rule makes.
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
    ("ies", "y"),
)  # fmt: skip
_IRREGULAR = {
    "geese": "goose", "mice": "mouse", "knives": "knife", "pocketknives": "pocketknife", "grandchildren": "grandchild",
    "buffaloes": "buffalo", "busses": "bus", "flamingoes": "flamingo",
}  # fmt: skip


class Chair(Grader):
    """The two rates. An answer without any listed object has no part in CHAIR_i, and is free of hallucination in CHAIR_s."""

    metrics = ("CHAIR_i_score", "CHAIR_s_score")
    reference = "objects"

    def check(self, row: Columns, where: str) -> None:
        check_text(row, "question", where)
        check_texts(row, "objects", where)

    def grade(self, row: Columns, answer: str, replies: Sequence[str]) -> Graded:
        there = {_objects().get(name.strip().lower(), name) for name in row["objects"]}
        named = objects_in(answer)
        wrong = sum(each not in there for each in named)
        values = {"CHAIR_i_score": wrong / len(named) if named else None, "CHAIR_s_score": float(wrong > 0)}
        return Graded(values, {"CHAIR_i_score": float(len(named))} if named else {})


def objects_in(text: str) -> list[str]:
    """The COCO objects that a text names, by their names there, as often as they are named."""
    words = [lemma(word) for word in re.findall(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]", text.lower())]
    found, place = [], 0
    while place < len(words):
        pair = " ".join(words[place : place + 2])
        found.append(_pairs().get(pair, words[place]))
        place += 2 if pair in _pairs() else 1
    if "toilet" in found:  # its seat is no chair
        found = [word for word in found if word != "seat"]
    return [_objects()[word] for word in found if word in _objects()]


def lemma(word: str) -> str:
    """The singular of a word, if it is one of the list; else the word."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    forms = [word, *(word.removesuffix(end) + other for end, other in _ENDINGS if word.endswith(end))]
    return min((form for form in forms if form in _words()), key=len, default=word)


@functools.cache
def _objects() -> Mapping[str, str]:
    """Synonym -> COCO's name of the object."""
    lines = (Path(__file__).parent / "coco_objects.txt").read_text(encoding="utf-8").lower().splitlines()
    listed = [line.split(", ") for line in lines]
    return {synonym: names[0] for names in listed for synonym in names}


@functools.cache
def _pairs() -> Mapping[str, str]:
    """Two words -> the word that they are taken for."""
    return {name: name for name in _objects() if " " in name} | _PAIRS


@functools.cache
def _words() -> frozenset[str]:
    """All single words that matter."""
    return frozenset(word for name in (*_objects(), *_pairs()) for word in name.split())
