"""The answers to "Describe the picture.": right ones, and others with a single flaw."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from mmrlhf_jax.quickstart.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene, SceneObject

OPENINGS = ("There is", "I see")
STYLES = (0, 1, 2)  # phrasings 0 and 1 are full; the last one is terse
TERSE = 2

Flaw = tuple[list[SceneObject], str]  # (the objects as described, the quality of the description)


def describe(objects: Sequence[SceneObject], style: int) -> str:
    """Every object with its place; a terse description leaves the sizes out."""
    phrases = [f"{thing.place} {thing.name}" if style == TERSE else thing.phrase for thing in objects]
    return f"{OPENINGS[style % 2]}: {', '.join(phrases)}."


def flaws(scene: Scene) -> list[Callable[[Scene, random.Random], Flaw]]:
    """The kinds of flaws that are possible for this scene, as functions that make one."""
    found: list[Callable[[Scene, random.Random], Flaw]] = [recolour, swap]
    if len({thing.shape for thing in scene.objects}) < len(SHAPES):
        found.append(reshape)
    if len(scene.objects) < len(PLACES):
        found.append(invent)
    if len(scene.objects) > 2:
        found.append(omit)
    return found


def recolour(scene: Scene, rng: random.Random) -> Flaw:
    return _mistake(scene, [dataclasses.replace(thing, colour=c) for thing in scene.objects for c in COLOURS], rng)


def reshape(scene: Scene, rng: random.Random) -> Flaw:
    return _mistake(scene, [dataclasses.replace(thing, shape=s) for thing in scene.objects for s in SHAPES], rng)


def _mistake(scene: Scene, lookalikes: Sequence[SceneObject], rng: random.Random) -> Flaw:
    """One object is described as another one that the scene does not have."""
    said = rng.choice([thing for thing in lookalikes if thing.name not in scene.names])
    return [said if thing.place == said.place else thing for thing in scene.objects], "partly_wrong"


def swap(scene: Scene, rng: random.Random) -> Flaw:
    """Two objects are described with their places exchanged."""
    first, second = (thing.place for thing in rng.sample(scene.objects, 2))
    swapped = {first: second, second: first}
    objects = [dataclasses.replace(thing, place=swapped.get(thing.place, thing.place)) for thing in scene.objects]
    return in_reading_order(objects), "partly_wrong"


def invent(scene: Scene, rng: random.Random) -> Flaw:
    place = rng.choice([place for place in PLACES if place not in {thing.place for thing in scene.objects}])
    looks = [(colour, shape) for colour in COLOURS for shape in SHAPES if f"{colour} {shape}" not in scene.names]
    invented = SceneObject(place, rng.choice(list(SIZES)), *rng.choice(looks))
    return in_reading_order([*scene.objects, invented]), "hallucinated"


def omit(scene: Scene, rng: random.Random) -> Flaw:
    missed = rng.choice(scene.objects)
    return [thing for thing in scene.objects if thing is not missed], "incomplete"


def in_reading_order(objects: Sequence[SceneObject]) -> list[SceneObject]:
    return sorted(objects, key=lambda thing: PLACES.index(thing.place))
