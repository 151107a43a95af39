"""Rendered scenes: two to four flat coloured shapes on a dark canvas, at most one in each of its four places.

A scene describes its image completely, so that every question, answer and critique about it can be checked by rule.
"""

from __future__ import annotations

import dataclasses
import functools
import random

from PIL import Image, ImageDraw

PLACES = ("upper left", "upper right", "lower left", "lower right")  # reading order
COLOURS = {
    "red": (235, 35, 35),
    "green": (30, 190, 60),
    "blue": (45, 95, 255),
    "yellow": (255, 225, 30),
    "purple": (175, 50, 215),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"large": 0.80, "small": 0.50}  # diameter as a share of the cell's short side

# (width, height) in pixels → relative frequency. Cells stretch with the canvas, objects do not.
CANVASES = {(96, 96): 0.7, (128, 96): 0.1, (96, 128): 0.1, (192, 96): 0.1}
SHADES = range(40, 65)  # grey level of the background
JITTER = 0.3  # share of the free space around an object by which it may be shifted
SUPERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One shape. `offset` in [-1, 1]² shifts it from the centre of its place, in units of the largest allowed shift."""

    place: str
    size: str
    colour: str
    shape: str
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        """Colour and shape, such as "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def phrase(self) -> str:
        """Place, size, colour and shape, such as "upper left large red circle". The place comes first, so that a model that has
        written it attends to that place for the other words."""
        return f"{self.place} {self.size} {self.name}"

    @property
    def row(self) -> int:
        return PLACES.index(self.place) // 2

    @property
    def column(self) -> int:
        return PLACES.index(self.place) % 2


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects in reading order on a canvas of (width, height) pixels whose background has grey level `shade`."""

    canvas: tuple[int, int]
    shade: int
    objects: tuple[SceneObject, ...]

    @property
    def key(self) -> str:
        """A text that identifies the objects and their places. Canvas, shade and jitter are not part of it."""
        return "; ".join(thing.phrase for thing in self.objects)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(thing.name for thing in self.objects)

    @property
    def by_shape(self) -> dict[str, SceneObject]:
        """The objects by shape; no two objects of a scene have the same shape."""
        return {thing.shape: thing for thing in self.objects}


def objects_from_key(key: str) -> tuple[SceneObject, ...]:
    """The objects of the scene with this key, in reading order; their offsets are not known."""
    found = []
    for phrase in key.split("; "):
        row, column, size, colour, shape = phrase.split()
        found.append(SceneObject(f"{row} {column}", size, colour, shape))
    return tuple(found)


def sample_scene(rng: random.Random) -> Scene:
    """A random scene of two to four objects with different colours and different shapes."""
    places = sorted(rng.sample(PLACES, rng.randint(2, 4)), key=PLACES.index)
    looks = zip(places, rng.sample(list(COLOURS), len(places)), rng.sample(SHAPES, len(places)), strict=True)
    objects = tuple(
        SceneObject(place, rng.choice(list(SIZES)), colour, shape, (rng.uniform(-1, 1), rng.uniform(-1, 1)))
        for place, colour, shape in looks
    )
    (canvas,) = rng.choices(list(CANVASES), weights=list(CANVASES.values()))
    return Scene(canvas, rng.choice(SHADES), objects)


def render(scene: Scene) -> Image.Image:
    """The image of a scene, RGB uint8, antialiased."""
    width, height = scene.canvas
    cell = (width / 2, height / 2)
    image = Image.new("RGB", scene.canvas, (scene.shade,) * 3)
    for thing in scene.objects:
        diameter = round(SIZES[thing.size] * min(cell))
        left, top = (
            round(cell[axis] * index + (cell[axis] - diameter) / 2 * (1 + JITTER * thing.offset[axis]))
            for axis, index in enumerate((thing.column, thing.row))
        )
        image.paste(COLOURS[thing.colour], (left, top), _mask(thing.shape, diameter))
    return image


@functools.cache
def _mask(shape: str, diameter: int) -> Image.Image:
    """The shape's coverage of a box of `diameter`² pixels, uint8."""
    side = diameter * SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    end = side - 1
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif shape == "triangle":
        draw.polygon(((end / 2, 0), (end, end), (0, end)), fill=255)
    elif shape == "cross":
        near, far = round(side * 0.34), round(side * 0.66) - 1
        draw.rectangle((near, 0, far, end), fill=255)
        draw.rectangle((0, near, end, far), fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return mask.reduce(SUPERSAMPLING)
