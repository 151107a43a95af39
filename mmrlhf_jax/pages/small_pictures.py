"""An example's media as small JPEG pictures, for pages and for tools in which people look at them."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from mmrlhf_jax.data.examples import Example
from mmrlhf_jax.data.images import decode_image

MOST_FRAMES = 8  # most frames of a video to show
PICTURE_SIDE = 900  # pixels


class SmallPicture(NamedTuple):
    """`size` is that of the original, as text."""

    name: str
    size: str
    jpeg: bytes


def small_pictures(example: Example) -> list[SmallPicture]:
    """The images, or frames spread evenly over the video. UserError for one that cannot be read."""
    named = [(f"image {path}", data) for path, data in zip(example.record.images, example.images, strict=True)]
    shown = np.unique(np.linspace(0, len(example.frames) - 1, min(len(example.frames), MOST_FRAMES), dtype=int))
    named += [(f"frame {i + 1} of {len(example.frames)}", example.frames[i]) for i in shown]
    found = []
    for name, data in named:
        image = decode_image(data, f"record {example.record.id!r}, {name}")
        size = f"{image.width} x {image.height}"
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, subsampling=0)
        found.append(SmallPicture(name, size, file.getvalue()))
    return found
