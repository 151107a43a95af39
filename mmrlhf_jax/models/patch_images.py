"""Resizes images and cuts them into patches as the image processor of their models does. NumPy and Pillow only.

Reference: transformers `models/qwen2_vl/image_processing_pil_qwen2_vl.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.tiles import check_rgb, resize

MOST_ASPECT = 200


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, what: str = "an image"
) -> tuple[int, int]:
    """The (height, width), multiples of `factor`, to which an image is resized: near its own, with an area within the limits.

    UserError, which calls it `what`, for an image that is more than 200 times as long as wide. A very long one may exceed
    `max_pixels`, because no side is shorter than `factor`.
    """
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise UserError(f"{what} of {width} x {height} pixels is more than {MOST_ASPECT} times as long as wide")
    found = round(height / factor) * factor, round(width / factor) * factor
    if found[0] * found[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if found[0] * found[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return found


def smart_resize_clip(
    frames: int, height: int, width: int, *, depth: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """As `smart_resize`, for the frames of a clip, where the limits are of the pixels of all frames together.

    `depth` is the number of frames of a patch. Frames that are smaller than `factor` are first enlarged. Reference:
    `smart_resize` in transformers `models/qwen3_vl/video_processing_qwen3_vl.py`, which refuses clips of less than `depth`
    frames; here the last frame is repeated.
    """
    frames = max(frames, depth)
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise UserError(f"a frame of {width} x {height} pixels is more than {MOST_ASPECT} times as long as wide")
    found = round(height / factor) * factor, round(width / factor) * factor
    total = round(frames / depth) * depth * found[0] * found[1]
    if total > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if total < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return found


def cut_blocks(image: Image.Image, rows: int, columns: int, patch: int, merge: int, frames: int) -> np.ndarray:
    """uint8[rows * columns, merge² * 3 * frames * patch²]: the image, resized to so many blocks, in raster order.

    A block's patches are in raster order, and a patch is flattened as (channel, frame, row, column); the image is repeated for
    every frame. ValueError unless the image is RGB.
    """
    check_rgb(image)
    side = patch * merge
    return _blocks([resize(image, rows * side, columns * side)] * frames, patch, merge)


def cut_clip(images: Sequence[Image.Image], rows: int, columns: int, patch: int, merge: int, frames: int) -> list[np.ndarray]:
    """As `cut_blocks`, of every `frames` consecutive images of a clip; the last image is repeated to fill them up."""
    for image in images:
        check_rgb(image)
    side = patch * merge
    pixels = [resize(image, rows * side, columns * side) for image in images]
    pixels += pixels[-1:] * (-len(pixels) % frames)
    return [_blocks(pixels[start : start + frames], patch, merge) for start in range(0, len(pixels), frames)]


def _blocks(frames: Sequence[np.ndarray], patch: int, merge: int) -> np.ndarray:
    """The blocks of frames, uint8[height, width, 3] each."""
    height, width, _ = frames[0].shape
    side = patch * merge
    shape = (height // side, merge, patch, width // side, merge, patch, 3)
    pixels = np.stack([frame.reshape(shape) for frame in frames])
    return pixels.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(height * width // side**2, -1)
