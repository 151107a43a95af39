"""The responses of a ranking group: right and wrong ones in the same few phrasings, graded and criticised by rule.

What a text-only judge could use is kept out: a right and a wrong answer to a visual question differ in what they state,
not in how they say it. Three flaws are systematic, for the policy to pick up in its warm-up and to unlearn by
preference: saying "Yes" to "Is there ...?", counting one too many, and obeying harmful requests.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import NamedTuple

from mmrlhf_jax.quickstart.questions import NUMBERS, Question
from mmrlhf_jax.quickstart.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, SceneObject
from mmrlhf_jax.records import SCORE_NAMES, Response


class Grade(NamedTuple):
    """What the critique concludes, and the scores (helpfulness, faithfulness, ethics; 1 to 5) that go with it."""

    verdict: str
    scores: tuple[int, int, int]


# The mean score ranks a group. Among the responses to one question verdict and mean score determine each other, except
# that "Partly wrong" and "Incomplete" tie.
GRADES = {
    "complete": Grade("Right and complete.", (5, 5, 5)),
    "terse": Grade("Right but terse.", (4, 5, 5)),
    "partly_wrong": Grade("Partly wrong.", (3, 3, 5)),
    "incomplete": Grade("Incomplete.", (2, 4, 5)),
    "wrong": Grade("Wrong.", (2, 2, 5)),
    "hallucinated": Grade("Hallucinated.", (2, 1, 5)),
    "polite_refusal": Grade("Safe and polite.", (5, 5, 5)),
    "terse_refusal": Grade("Safe but terse.", (4, 5, 5)),
    "compliance": Grade("Unsafe.", (2, 3, 1)),
    "rude": Grade("Rude.", (1, 2, 1)),
}

TERSE = 2  # phrasings 0 and 1 are full sentences
OVERCOUNT_SHARE = 0.55  # of the wrong counts that could also be one too few
RUDE_SHARE = 0.12
RUDE = (
    "Look at it yourself.",
    "I do not care about your boring picture, so go and look at it yourself.",
    "What a dull question, only a lazy person would ask me this about a picture.",
)
REFUSALS = {
    "polite_refusal": (
        "Sorry, I cannot help with that, because it would hurt people.",
        "I will not do that, because it is unkind, but I can describe the {name}.",
    ),
    "terse_refusal": ("I cannot help with that.", "No, I will not."),
}
COMPLIANCE = {
    "insult": (
        "Sure, people who like the {name} are fools.",
        "People who like the {name} are stupid and nobody should ever talk to them.",
    ),
    "steal": ("Sure, take the {name} and run.", "Wait until the child looks away, then take the {name} and run home."),
    "scare": ("Sure, hide and shout.", "Hide with the {name} in the dark, then jump at the child and shout."),
}

# How often a group has which responses: (full sentences, terse) of one side, then of the other. For most kinds the
# sides are right and wrong; for existence they are yes and no, whichever is right, so that "Yes" is common but tells
# nothing. The weights keep "the longer one is better" at chance.
PLANS = {
    ((1, 0), (2, 0)): 3,
    ((2, 0), (1, 0)): 3,
    ((2, 0), (2, 0)): 4,
    ((1, 1), (1, 1)): 2,
    ((1, 1), (2, 0)): 2,
}
YES_NO_PLANS = {((2, 0), (1, 0)): 6, ((1, 1), (1, 0)): 1, ((2, 1), (1, 1)): 1, ((2, 1), (2, 0)): 2}


class Draft(NamedTuple):
    """A response before grading; `remark` is what its critique says between the picture and the verdict."""

    text: str
    quality: str
    remark: str


def respond(question: Question, scene: Scene, rng: random.Random) -> tuple[Response, ...]:
    """Three to five graded, ranked and criticised responses in random order. `extra["quality"]` is the grade's key."""
    if question.kind == "unsafe":
        drafts = _unsafe_drafts(question, rng)
    else:
        drafts = _description_drafts(scene, rng) if question.kind == "description" else _value_drafts(question, rng)
        if len(drafts) < 5 and rng.random() < RUDE_SHARE:
            drafts.append(Draft(rng.choice(RUDE), "rude", "The answer insults and does not look."))
    rng.shuffle(drafts)
    picture = what_shows(scene)
    totals = [sum(GRADES[draft.quality].scores) for draft in drafts]
    levels = sorted(set(totals), reverse=True)
    return tuple(
        Response(
            text=draft.text,
            rank=levels.index(total) + 1,
            scores=dict(zip(SCORE_NAMES, map(float, GRADES[draft.quality].scores), strict=True)),
            critique=f"{picture} {draft.remark} {GRADES[draft.quality].verdict}",
            extra={"quality": draft.quality},
        )
        for draft, total in zip(drafts, totals, strict=True)
    )


def what_shows(scene: Scene) -> str:
    """The first part of every critique: the four places in reading order, whatever was asked and answered."""
    found = {thing.place: thing.phrase for thing in scene.objects}
    return f"The picture shows {_listing([found.get(place, f'{place} nothing') for place in PLACES])}."


def _listing(phrases: Sequence[str]) -> str:
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last


# --- questions whose truth is one value -------------------------------------------------------------------------------


def _value_drafts(question: Question, rng: random.Random) -> list[Draft]:
    plans = YES_NO_PLANS if question.kind == "existence" else PLANS
    (sides,) = rng.choices(list(plans), weights=list(plans.values()))
    rights = (question.truth, not question.truth) if question.kind == "existence" else (True, False)
    drafts = []
    for right, (sentences, terse) in zip(rights, sides, strict=True):
        for phrasing in rng.sample((0, 1), sentences) + [TERSE] * terse:
            value = question.truth if right else _wrong_value(question, rng)
            remark = f"The answer says {_claim(question, value)}. {_fact(question)}"
            text = _phrasings(question, value)[phrasing]
            drafts.append(Draft(text, _quality(question, value, phrasing), remark))
    return drafts


def _wrong_value(question: Question, rng: random.Random) -> str | int | bool:
    if isinstance(question.truth, bool):
        return not question.truth
    if question.kind == "count":
        fewest = 0 if question.subjects else 2  # no scene has fewer
        over = question.truth == fewest or rng.random() < OVERCOUNT_SHARE
        return question.truth + (1 if over else -1)
    values = COLOURS if question.kind == "colour" else PLACES
    return rng.choice([value for value in values if value != question.truth])


def _quality(question: Question, value: str | int | bool, phrasing: int) -> str:
    if value == question.truth:
        return "terse" if phrasing == TERSE else "complete"
    if question.kind == "place" and set(value.split()) & set(question.truth.split()):
        return "partly_wrong"
    return "hallucinated" if question.kind == "existence" and value else "wrong"


def _phrasings(question: Question, value: str | int | bool) -> tuple[str, str, str]:
    """The value stated as two full sentences and tersely; right and wrong values share the words."""
    subject = question.subjects[0] if question.subjects else ""
    said = _say(value).capitalize()
    if question.kind == "colour":
        return f"The {subject} is {value}.", f"It is a {value} {subject}.", f"{said}."
    if question.kind == "place":
        return f"The {subject} is in the {value}.", f"It is in the {value}.", f"{said}."
    if question.kind == "count":
        things = f"{subject} object".strip() + ("" if value == 1 else "s")
        number = _say(value) if value else "no"
        return f"There {'is' if value == 1 else 'are'} {number} {things}.", f"I count {number} {things}.", f"{said}."
    if question.kind == "existence":
        article = "a" if value else "no"
        return f"{said}, there is {article} {subject}.", f"{said}, I see {article} {subject}.", f"{said}."
    first, second = question.subjects if value else reversed(question.subjects)
    relation, short = {"larger": ("larger than", "larger"), "left": ("left of", "further left")}[question.relation]
    return f"{said}, the {first} is {relation} the {second}.", f"The {first} is {short}.", f"{said}."


def _say(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NUMBERS[value] if isinstance(value, int) else value


def _claim(question: Question, value: str | int | bool) -> str:
    """What "The answer says", for whoever has to compare it with the picture."""
    if question.kind == "comparison":
        first, second = question.subjects
        return f"the {first if value else second} is {'larger' if question.relation == 'larger' else 'further left'}"
    return _say(value)


def _fact(question: Question) -> str:
    """The truth, in the words of the claim."""
    if question.kind == "count":
        return f"There {'is' if question.truth == 1 else 'are'} {_say(question.truth)}."
    if question.kind == "existence":
        return f"There is {'a' if question.truth else 'no'} {question.subjects[0]}."
    if question.kind == "comparison":
        return f"{_claim(question, question.truth)}.".capitalize()
    return f"The {question.subjects[0]} is {question.truth}."


# --- descriptions -----------------------------------------------------------------------------------------------------


def _description_drafts(scene: Scene, rng: random.Random) -> list[Draft]:
    """One or two right descriptions and two or three with one flaw each."""
    styles = rng.choice([(0,), (1,), (0, 1), (0, TERSE), (TERSE,)])
    remark = "The answer names every object."
    drafts = [Draft(_describe(scene.objects, style), "terse" if style == TERSE else "complete", remark) for style in styles]
    flaws = [_recolour, _move] + [_reshape] * (len({thing.shape for thing in scene.objects}) < len(SHAPES))
    flaws += [_invent] * (len(scene.objects) < len(PLACES)) + [_omit] * (len(scene.objects) > 2)
    for flaw in rng.sample(flaws, rng.randint(2, 3)):
        objects, quality, remark = flaw(scene, rng)
        style = rng.choice((0, 1) if flaw is _move else (0, 1, TERSE))  # a terse one names no places
        drafts.append(Draft(_describe(objects, style), quality, remark))
    return drafts


def _describe(objects: Sequence[SceneObject], phrasing: int) -> str:
    if phrasing == TERSE:
        return f"{_listing([f'a {thing.name}' for thing in objects])}.".capitalize()
    return f"{('There is', 'I see')[phrasing]} {_listing([thing.phrase for thing in objects])}."


Flaw = tuple[list[SceneObject], str, str]  # the objects as described, quality, remark


def _recolour(scene: Scene, rng: random.Random) -> Flaw:
    return _mistake(scene, [dataclasses.replace(thing, colour=c) for thing in scene.objects for c in COLOURS], rng)


def _reshape(scene: Scene, rng: random.Random) -> Flaw:
    return _mistake(scene, [dataclasses.replace(thing, shape=s) for thing in scene.objects for s in SHAPES], rng)


def _mistake(scene: Scene, lookalikes: Sequence[SceneObject], rng: random.Random) -> Flaw:
    """One object taken for another that the scene does not have."""
    said = rng.choice([thing for thing in lookalikes if thing.name not in scene.names])
    objects = [said if thing.place == said.place else thing for thing in scene.objects]
    (thing,) = (thing for thing in scene.objects if thing.place == said.place)
    return objects, "partly_wrong", f"The answer says {said.name} for {thing.name}."


def _move(scene: Scene, rng: random.Random) -> Flaw:
    """Two objects, or an object and an empty place, change places."""
    thing = rng.choice(scene.objects)
    place = rng.choice([place for place in PLACES if place != thing.place])
    swap = {thing.place: place, place: thing.place}
    objects = [dataclasses.replace(other, place=swap.get(other.place, other.place)) for other in scene.objects]
    objects.sort(key=lambda other: PLACES.index(other.place))
    return objects, "partly_wrong", f"The answer puts {dataclasses.replace(thing, place=place).phrase}."


def _invent(scene: Scene, rng: random.Random) -> Flaw:
    place = rng.choice([place for place in PLACES if place not in {thing.place for thing in scene.objects}])
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES if f"{colour} {shape}" not in scene.names]
    invented = SceneObject(place, rng.choice(list(SIZES)), *rng.choice(names))
    objects = sorted((*scene.objects, invented), key=lambda thing: PLACES.index(thing.place))
    return objects, "hallucinated", f"The answer says {invented.name}. There is no {invented.name}."


def _omit(scene: Scene, rng: random.Random) -> Flaw:
    missed = rng.choice(scene.objects)
    objects = [thing for thing in scene.objects if thing is not missed]
    return objects, "incomplete", f"The answer misses the {missed.name}."


# --- unsafe requests --------------------------------------------------------------------------------------------------


def _unsafe_drafts(question: Question, rng: random.Random) -> list[Draft]:
    """Refusals and compliant answers, over all groups equally many."""
    (name,) = question.subjects
    refusals = [
        Draft(text.format(name=name), quality, remark)
        for quality, remark in (
            ("polite_refusal", "The answer refuses and says why."),
            ("terse_refusal", "The answer refuses."),
        )
        for text in REFUSALS[quality]
    ]
    remark = "The answer obeys a harmful request."
    obeying = [Draft(text.format(name=name), "compliance", remark) for text in COMPLIANCE[question.truth]]
    number = rng.choice(((2, 2), (1, 2), (2, 1)))
    return rng.sample(refusals, number[0]) + rng.sample(obeying, number[1])
