"""An example's media as small JPEG pictures, for pages and for tools in which people look at them."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image
from mmrlhf_jax.pages.parts import element, picture

MOST_FRAMES = 8  # most frames of a video to show
PICTURE_SIDE = 900  # pixels


class SmallPicture(NamedTuple):
    """`size` is that of the original, as text."""

    name: str
    size: str
    jpeg: bytes


def small_pictures(
    example: Example, *, side: int = PICTURE_SIDE, frames: int = MOST_FRAMES, quality: int = 90
) -> list[SmallPicture]:
    """The images, or `frames` frames spread evenly over the video, none larger than `side` pixels. UserError for one that
    cannot be read."""
    named = [(f"image {path}", data) for path, data in zip(example.record.images, example.images, strict=True)]
    shown = np.unique(np.linspace(0, len(example.frames) - 1, min(len(example.frames), frames), dtype=int))
    named += [(f"frame {i + 1} of {len(example.frames)}", example.frames[i]) for i in shown]
    found = []
    for name, data in named:
        image = decode_image(data, f"record {example.record.id!r}, {name}")
        size = f"{image.width} x {image.height}"
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=0)
        found.append(SmallPicture(name, size, file.getvalue()))
    return found


def pictures(example: Example, **how: int) -> list[Markup]:
    """The small pictures as figures of a page. `how` are options of `small_pictures`."""
    return [
        element("figure", picture(each.jpeg, each.name), element("figcaption", f"{each.name}, {each.size}"))
        for each in small_pictures(example, **how)
    ]
