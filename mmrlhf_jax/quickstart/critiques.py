"""What a critique says before its verdict: the account of the picture, with a mark at each object that the question is about.

A critic of this size can read a picture place by place and tell whether the word before it is one of the question's or of the
answer's; so the critique looks at each place in turn, and judges it there and then. Every attribute is written as in
`scenes.py`, after a space: one token each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmrlhf_jax.quickstart.questions import NUMBERS, Question
from mmrlhf_jax.quickstart.scenes import PLACES, Scene, SceneObject

Value = str | int | bool


def say(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NUMBERS[value] if isinstance(value, int) else value


def of_value(question: Question, scene: Scene, value: Value) -> str:
    """Of a response that states `value` to a question whose truth is one value."""
    marks = MARKS[question.kind](question, scene, value)
    conclusion = "" if question.kind in ("colour", "place") else f", so {say(question.truth)}"
    return f"The picture shows: {_account(scene.objects, marks)}{conclusion}."


def of_description(scene: Scene, described: Sequence[SceneObject]) -> str:
    """Place by place what is there, and how the description has it."""
    truth, said = ({thing.place: thing for thing in objects} for objects in (scene.objects, described))

    def mark(place: str) -> str:
        if (place in truth) != (place in said):
            return "missed" if place in truth else "invented"
        alike = place not in truth or truth[place].phrase == said[place].phrase
        return "correct" if alike else "wrong"

    return f"The picture shows: {_account(scene.objects, {place: mark(place) for place in PLACES})}."


def _account(objects: Sequence[SceneObject], marks: dict[str, str]) -> str:
    """As `captions.account`, with the mark of a place behind it."""
    there = {thing.place: thing.phrase for thing in objects}
    return ", ".join(f"{there.get(place, f'{place} nothing')} {marks.get(place, '')}".rstrip() for place in PLACES)


def _mark_colour(question: Question, scene: Scene, value: Value) -> dict[str, str]:
    """The object asked about: whether it is of the colour that the answer states."""
    thing = scene.by_shape[question.subjects[0]]
    return {thing.place: "correct" if thing.colour == value else "wrong"}


def _mark_place(question: Question, scene: Scene, value: Value) -> dict[str, str]:
    """The object asked about: whether this is the place that the answer states, or half of it."""
    thing = scene.by_shape[question.subjects[0].split()[1]]
    shared = sum(said == true for said, true in zip(str(value).split(), thing.place.split(), strict=True))
    return {thing.place: ("wrong", "partly", "correct")[shared]}


def _mark_count(question: Question, scene: Scene, value: Value) -> dict[str, str]:
    """Every object that counts gets its number."""
    counted = [thing for thing in scene.objects if not question.subjects or thing.size == question.subjects[0]]
    return {thing.place: NUMBERS[i] for i, thing in enumerate(counted, 1)}


def _mark_existence(question: Question, scene: Scene, value: Value) -> dict[str, str]:
    return {thing.place: "found" for thing in scene.objects if thing.name == question.subjects[0]}


def _mark_comparison(question: Question, scene: Scene, value: Value) -> dict[str, str]:
    """The two objects in the question's order."""
    return {scene.by_shape[shape].place: order for shape, order in zip(question.subjects, ("first", "second"), strict=True)}


MARKS: dict[str, Callable[[Question, Scene, Value], dict[str, str]]] = {
    "colour": _mark_colour,
    "place": _mark_place,
    "count": _mark_count,
    "existence": _mark_existence,
    "comparison": _mark_comparison,
}
