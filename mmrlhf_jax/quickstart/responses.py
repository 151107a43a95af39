"""The responses of a ranking group: right and wrong ones with the same few phrasings, graded and criticised by rule.

A judge that sees only the text has no cues: right and wrong answers to a visual question differ in their facts, not in their
phrasing. Three flaws are systematic, so that the policy learns them in its warm-up and unlearns them by preference training:
answering "Yes" to "Is there ...?", counting one too many, and obeying harmful requests.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from mmrlhf_jax.quickstart import critiques
from mmrlhf_jax.quickstart.critiques import say
from mmrlhf_jax.quickstart.descriptions import STYLES, TERSE, describe, flaws
from mmrlhf_jax.quickstart.questions import Question
from mmrlhf_jax.quickstart.scenes import COLOURS, PLACES, Scene
from mmrlhf_jax.records import SCORE_NAMES, Response


class Grade(NamedTuple):
    """The verdict of the critique, and the scores (helpfulness, faithfulness, ethics; 1 to 5) that belong to it."""

    verdict: str
    scores: tuple[int, int, int]


# Groups are ranked by the mean score. Among the responses to one question, verdict and mean score determine each other, except
# that "Partly wrong" and "Incomplete" are tied.
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

OVERCOUNT_SHARE = 0.8  # share of "one too many" among wrong counts that could also be one too few
RUDE_SHARE = 0.08
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

# Weights of group compositions: (full sentences, terse ones) of the right responses, then of the wrong ones. Most kinds have as
# many of both. The flaws that the policy is to unlearn are in the majority: a count that is too high, and "Yes" (which is right
# if the object is present). Preferring the longer response is at chance level. Groups are rather large, because a response
# costs little compared with the shared prompt.
Plans = dict[tuple[tuple[int, int], tuple[int, int]], int]
EVEN: Plans = {((2, 0), (2, 0)): 5, ((1, 1), (1, 1)): 1, ((2, 0), (2, 1)): 2, ((2, 1), (2, 0)): 2}
MOSTLY_RIGHT: Plans = {((2, 0), (1, 0)): 3, ((2, 1), (2, 0)): 2, ((2, 1), (1, 1)): 1}
MOSTLY_WRONG: Plans = {((1, 0), (2, 0)): 3, ((2, 0), (2, 1)): 2, ((1, 1), (2, 1)): 1}


class Draft(NamedTuple):
    """A response before grading, with the text of its critique before the verdict."""

    text: str
    quality: str
    critique: str


def respond(question: Question, scene: Scene, rng: random.Random) -> tuple[Response, ...]:
    """Three to five graded, ranked and criticised responses in random order. `extra["quality"]` is the grade's key."""
    if question.kind == "unsafe":
        drafts = _unsafe_drafts(question, rng)
    else:
        describes = question.kind == "description"
        drafts = _description_drafts(scene, rng) if describes else _value_drafts(question, scene, rng)
        if len(drafts) < 5 and rng.random() < RUDE_SHARE:
            drafts.append(Draft(rng.choice(RUDE), "rude", "The answer insults and does not look."))
    rng.shuffle(drafts)
    totals = [sum(GRADES[draft.quality].scores) for draft in drafts]
    levels = sorted(set(totals), reverse=True)
    return tuple(
        Response(
            text=draft.text,
            rank=levels.index(total) + 1,
            scores=dict(zip(SCORE_NAMES, map(float, GRADES[draft.quality].scores), strict=True)),
            critique=f"{draft.critique} {GRADES[draft.quality].verdict}",
            extra={"quality": draft.quality},
        )
        for draft, total in zip(drafts, totals, strict=True)
    )


def _value_drafts(question: Question, scene: Scene, rng: random.Random) -> list[Draft]:
    plans = _plans(question)
    (sides,) = rng.choices(list(plans), weights=list(plans.values()))
    drafts = []
    for right, (sentences, terse) in zip((True, False), sides, strict=True):
        for phrasing in rng.sample((0, 1), sentences) + [TERSE] * terse:
            value = question.truth if right else _wrong_value(question, rng)
            text = _phrasings(question, value)[phrasing]
            drafts.append(Draft(text, _quality(question, value, phrasing), critiques.of_value(question, scene, value)))
    return drafts


def _plans(question: Question) -> Plans:
    if question.kind == "count":
        return MOSTLY_WRONG
    if question.kind == "existence":
        return MOSTLY_RIGHT if question.truth else MOSTLY_WRONG
    return EVEN


def _wrong_value(question: Question, rng: random.Random) -> str | int | bool:
    if isinstance(question.truth, bool):
        return not question.truth
    if question.kind == "count":
        fewest = 0 if question.subjects else 2  # no scene has fewer than two objects
        over = question.truth == fewest or rng.random() < OVERCOUNT_SHARE
        return question.truth + (1 if over else -1)
    values = COLOURS if question.kind == "colour" else PLACES
    return rng.choice([value for value in values if value != question.truth])


def _quality(question: Question, value: str | int | bool, phrasing: int) -> str:
    agreement = critiques.mark(question, value)
    if agreement == "correct":
        return "terse" if phrasing == TERSE else "complete"
    if agreement == "partly":
        return "partly_wrong"
    return "hallucinated" if question.kind == "existence" and value else "wrong"


def _phrasings(question: Question, value: str | int | bool) -> tuple[str, str, str]:
    """The value in two full sentences and one terse phrase, with the same words for right and wrong values.

    A value never follows directly the word by which it is looked up in the image, because a critic would then copy it from the
    answer instead of looking. So a critic can mark every kind of answer by one rule: whether the word that it saw occurs in it.
    """
    subject = question.subjects[0] if question.subjects else ""
    if question.kind == "colour":
        return f"The {subject} is {value}.", f"I see a {value} {subject}.", f"It is {value}."
    if question.kind == "place":
        return f"The {subject} is in the {value}.", f"I see the {subject} in the {value}.", f"It is {value}."
    if question.kind == "count":
        things = f"{subject} object".strip() + ("" if value == 1 else "s")
        number = say(value)
        return f"There {'is' if value == 1 else 'are'} {number} {things}.", f"I count {number} {things}.", f"Just {number}."
    said = say(value).capitalize()
    if question.kind == "existence":
        article = "a" if value else "no"
        return f"{said}, there is {article} {subject}.", f"{said}, I see {article} {subject}.", f"{said}."
    first, second = question.subjects if value else reversed(question.subjects)
    relation, short = {"larger": ("larger than", "larger"), "left": ("left of", "further left")}[question.relation]
    return f"{said}, the {first} is {relation} the {second}.", f"{said}, the {first} is {short}.", f"{said}."


def _description_drafts(scene: Scene, rng: random.Random) -> list[Draft]:
    """One or two right descriptions and two or three with one flaw each."""
    drafts = []
    for style in rng.choice([(0,), (1,), (0, 1), (0, TERSE), (1, TERSE)]):
        quality = "terse" if style == TERSE else "complete"
        drafts.append(Draft(describe(scene.objects, style), quality, critiques.of_description(scene, scene.objects)))
    for flaw in rng.sample(flaws(scene), rng.randint(2, 3)):
        objects, quality = flaw(scene, rng)
        text = describe(objects, rng.choice(STYLES))
        drafts.append(Draft(text, quality, critiques.of_description(scene, objects)))
    return drafts


def _unsafe_drafts(question: Question, rng: random.Random) -> list[Draft]:
    """Some refusals, and more answers that obey."""
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
    return rng.sample(refusals, rng.choice((1, 1, 2))) + obeying
