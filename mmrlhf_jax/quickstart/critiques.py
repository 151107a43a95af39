"""The text of a critique before its verdict: what the image shows of the question's subject, and whether the answer agrees.

A critic of this size learns within minutes to look up (in the image or in the answer) what belongs to the preceding word, and
hardly more. So every fact follows the word by which it is looked up ("square red"), and every mark the word that it judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmrlhf_jax.quickstart.captions import SEEN, account
from mmrlhf_jax.quickstart.questions import NUMBERS, Question
from mmrlhf_jax.quickstart.scenes import PLACES, Scene, SceneObject

Value = str | int | bool


def say(value: Value) -> str:
    """The value as a word: yes or no, a number's name, or the text itself."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NUMBERS[value] if isinstance(value, int) else value


def of_value(question: Question, scene: Scene, value: Value) -> str:
    """The critique of a response that states `value`, for a question whose truth is a single value."""
    seen = FACTS[question.kind](question, scene)
    conclusion = "" if question.kind in ("colour", "place") else f", so {say(question.truth)}"
    return f"{SEEN}: {seen}{conclusion} {mark(question, value)}."


def of_description(scene: Scene, described: Sequence[SceneObject]) -> str:
    """The critique of a description: place by place the objects in the image, each with its mark."""
    truth, said = ({thing.place: thing for thing in objects} for objects in (scene.objects, described))

    def judged(place: str) -> str:
        if (place in truth) != (place in said):
            return "missed" if place in truth else "invented"
        alike = place not in truth or truth[place].phrase == said[place].phrase
        return "correct" if alike else "wrong"

    return f"{SEEN}: {account(scene.objects, {place: judged(place) for place in PLACES})}."


def mark(question: Question, value: Value) -> str:
    """Whether the answer agrees: `correct` or `wrong`, or `partly` if half of a place is right."""
    if value == question.truth:
        return "correct"
    half = question.kind == "place" and bool(set(str(value).split()) & set(question.truth.split()))
    return "partly" if half else "wrong"


def _colour(question: Question, scene: Scene) -> str:
    return f"{question.subjects[0]} {question.truth}"


def _place(question: Question, scene: Scene) -> str:
    return f"{question.subjects[0].split()[1]} {question.truth}"


def _existence(question: Question, scene: Scene) -> str:
    """The colour of the object with the shape that is asked about, and whether it is the colour that is asked about."""
    colour, shape = question.subjects[0].split()
    found = scene.by_shape[shape].colour if shape in scene.by_shape else "nothing"
    return f"{shape} {found} {'same' if found == colour else 'other'}"


def _comparison(question: Question, scene: Scene) -> str:
    trait = "size" if question.relation == "larger" else "place"
    return ", ".join(f"{shape} {getattr(scene.by_shape[shape], trait)}" for shape in question.subjects)


def _count(question: Question, scene: Scene) -> str:
    """The objects place by place, with a running number for each object that is counted."""
    counted = [thing for thing in scene.objects if not question.subjects or thing.size == question.subjects[0]]
    return account(scene.objects, {thing.place: NUMBERS[i] for i, thing in enumerate(counted, 1)})


FACTS: dict[str, Callable[[Question, Scene], str]] = {
    "colour": _colour,
    "place": _place,
    "existence": _existence,
    "comparison": _comparison,
    "count": _count,
}
