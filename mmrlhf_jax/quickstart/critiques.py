"""What a critique says before its verdict: what the picture shows, what was answered, and whether the two agree.

The fact stands first, so that it is read from the picture and not from the claim; then the claim, in the words of the fact, so
that two like things are compared. Every attribute is written as in `scenes.py`, after a space: one token each.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf_jax.quickstart.captions import account
from mmrlhf_jax.quickstart.questions import NUMBERS, Question
from mmrlhf_jax.quickstart.scenes import PLACES, Scene, SceneObject


def say(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NUMBERS[value] if isinstance(value, int) else value


def of_value(question: Question, scene: Scene, value: str | int | bool) -> str:
    """Of a response that states `value` to a question whose truth is one value."""
    shown = f"The picture shows: {account(scene.objects)}"
    return f"{shown}{_fact(question, scene)} The answer says {say(value)}, {_mark(question, value)}."


def _mark(question: Question, value: str | int | bool) -> str:
    """What is to be said of the value: right or not, and of a place how much of it."""
    if value == question.truth:
        return "correctly"
    if question.kind != "place":
        return "wrongly"
    wrong = [name for name, said, true in zip(("row", "column"), value.split(), question.truth.split()) if said != true]
    return f"in the wrong {' and '.join(wrong)}"


def _fact(question: Question, scene: Scene) -> str:
    """What of the account answers the question, as the account goes on."""
    truth, things = say(question.truth), scene.by_shape
    if question.kind in ("colour", "place"):
        return f". The {question.subjects[0]} is {truth}."
    if question.kind == "comparison":
        first, second = (things[shape] for shape in question.subjects)
        trait = "size" if question.relation == "larger" else "place"
        return f". The {first.shape} is {getattr(first, trait)}, the {second.shape} is {getattr(second, trait)}, so {truth}."
    if question.kind == "existence":
        shape = question.subjects[0].split()[1]
        found = f"The {shape} is {things[shape].colour}" if shape in things else f"There is no {shape}"
        return f". {found}, so {truth}."
    return f", so {truth}."


def of_description(scene: Scene, described: Sequence[SceneObject]) -> str:
    """Place by place what is there, and how the description has it."""
    truth, said = ({thing.place: thing for thing in objects} for objects in (scene.objects, described))

    def mark(place: str) -> str:
        if (place in truth) != (place in said):
            return "missed" if place in truth else "invented"
        alike = place not in truth or truth[place].phrase == said[place].phrase
        return "correct" if alike else "wrong"

    return f"The picture shows: {', '.join(f'{_there(truth, place)} {mark(place)}' for place in PLACES)}."


def _there(objects: dict[str, SceneObject], place: str) -> str:
    return objects[place].phrase if place in objects else f"{place} nothing"
