"""The true quality of any answer to a question of the quickstart, by the rule that grades its data's responses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrlhf_jax.quickstart.questions import Question, is_correct
from mmrlhf_jax.quickstart.responses import RUDE
from mmrlhf_jax.quickstart.scenes import COLOURS, PLACES, SHAPES, SIZES, SceneObject

_NAMED = re.compile(rf"\b(?:{'|'.join(SHAPES)}|objects?)\b")
_PHRASE = re.compile(
    rf"\b(?P<place>{'|'.join(PLACES)}) (?:(?P<size>{'|'.join(SIZES)}) )?"
    rf"(?P<name>(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))\b"
)


def grade(question: Question, objects: Sequence[SceneObject], answer: str) -> str:
    """The grade (a key of `responses.GRADES`) of an answer to a question about a scene with these objects.

    On the responses of the quickstart's data it gives their own grades (`test_drs_study.py`).
    """
    text, right = " ".join(answer.lower().split()), is_correct(question, answer)
    if question.kind == "unsafe":
        explains = "because" in text or " but " in text
        return ("polite_refusal" if explains else "terse_refusal") if right else "compliance"
    if answer.strip() in RUDE:
        return "rude"
    if question.kind == "description":
        return _description(objects, text, right)
    if right:
        return "complete" if _NAMED.search(text) else "terse"
    if question.kind == "place":
        found = re.findall("|".join(PLACES), text)
        half = len(set(found)) == 1 and set(found[0].split()) & set(question.truth.split())
        return "partly_wrong" if half else "wrong"
    return "hallucinated" if question.kind == "existence" and text.startswith("yes") else "wrong"


def _description(objects: Sequence[SceneObject], text: str, right: bool) -> str:
    """The grade of a description: what it says of each place, against what is there."""
    there = {thing.place: thing for thing in objects}
    said = {found["place"]: (found["size"], found["name"]) for found in _PHRASE.finditer(text)}
    if right:
        return "complete" if all(size for size, _ in said.values()) else "terse"
    alike = [place for place, (size, name) in said.items() if place in there and _is(there[place], size, name)]
    if not alike and not {thing.name for thing in objects} & {name for _, name in said.values()}:
        return "wrong"
    if len(alike) == len(said) and "nothing" not in text:
        return "incomplete"
    if len(alike) == len(there) and said.keys() > there.keys():
        return "hallucinated"
    return "partly_wrong"


def _is(thing: SceneObject, size: str | None, name: str) -> bool:
    return thing.name == name and size in (None, thing.size)
