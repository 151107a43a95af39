"""Cuts decoded images into tiles, exactly as transformers does.

The pixels are those of transformers' `LlavaOnevisionImageProcessorPil` before rescaling and normalising, which the
device does. NumPy and Pillow only: data workers import this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmrlhf_jax.models.geometry import Size
from mmrlhf_jax.models.llava_onevision.vision_plan import best_resolution
from mmrlhf_jax.models.tiles import check_rgb, cut_canvas, resize

if TYPE_CHECKING:
    from mmrlhf_jax.models.llava_onevision.geometry import VisionGeometry

_BAND = 1024  # rows handled at once when padding to a square


def cut_tiles(image: Image.Image, geometry: VisionGeometry, anyres: bool) -> np.ndarray:
    """uint8[tiles, image_size, image_size, 3] of an RGB image, in the order of `plan_image`.

    With `anyres` (the only image of its prompt; see `plan_images`) the first tile is the whole image squeezed to a
    square, the others are the image fitted into `best_resolution`, centred on black and cut row-major. Otherwise one
    tile: the image padded to a square, or squeezed to one where `geometry.plain` says so.
    """
    check_rgb(image)
    side = geometry.image_size
    if geometry.plain == "square":
        return resize(image, side, side)[None]
    if not (anyres and geometry.anyres):
        return _pad_and_squeeze(image, side, geometry.pad_color)[None]
    height, width = best_resolution(image.height, image.width, geometry.pinpoints)
    fitted_height, fitted_width = _fitted_size(image, height, width)
    top, left = (height - fitted_height) // 2, (width - fitted_width) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + fitted_height, left : left + fitted_width] = resize(image, fitted_height, fitted_width)
    tiles = np.empty((geometry.canvas_tiles((height, width)), side, side, 3), np.uint8)
    tiles[0] = resize(image, side, side)
    cut_canvas(canvas, tiles[1:])
    return tiles


def cut_frames(frames: Sequence[Image.Image], geometry: VisionGeometry) -> np.ndarray:
    """uint8[F, image_size, image_size, 3]: each RGB frame of a video squeezed to a square, as in the original code.

    transformers resizes videos with torchvision, whose bicubic filter may differ from Pillow's by a grey level.
    """
    side = geometry.image_size
    tiles = np.empty((len(frames), side, side, 3), np.uint8)
    for tile, frame in zip(tiles, frames, strict=True):
        check_rgb(frame)
        tile[:] = resize(frame, side, side)
    return tiles


def _fitted_size(image: Image.Image, height: int, width: int) -> Size:
    """The largest (height, width) of the image's aspect inside a canvas, the free side rounded up (`get_patch_output_size`)."""
    by_width, by_height = width / image.width, height / image.height
    if by_width < by_height:
        return min(math.ceil(image.height * by_width), height), width
    return height, min(math.ceil(image.width * by_height), width)


def _pad_and_squeeze(image: Image.Image, side: int, color: tuple[int, int, int]) -> np.ndarray:
    """The image centred on a square of `color`, resized to uint8[side, side, 3].

    Pillow resizes along rows, then along columns. Doing the two passes separately, a band of rows at a time, gives the
    same pixels without holding the padded square (2.7 GB for a strip of 100 x 30 000 pixels).
    """
    length = max(image.size)
    top, left = (length - image.height) // 2, (length - image.width) // 2
    squeezed = Image.new("RGB", (side, length), color)
    for y in range(0, image.height, _BAND):
        band = image.crop((0, y, image.width, min(y + _BAND, image.height)))
        padded = Image.new("RGB", (length, band.height), color)
        padded.paste(band, (left, 0))
        squeezed.paste(padded.resize((side, band.height), Image.Resampling.BICUBIC), (0, top + y))
    return resize(squeezed, side, side)
