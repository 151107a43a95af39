"""Resizes images and cuts them into patches as the image processor of their models does. NumPy and Pillow only.

Reference: transformers `models/qwen2_vl/image_processing_pil_qwen2_vl.py`.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.tiles import check_rgb, resize

MOST_ASPECT = 200


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width), multiples of `factor`, to which an image is resized: near its own, with an area within the limits.

    UserError for an image that is more than 200 times as long as wide. A very long one may exceed `max_pixels`, because no side
    is shorter than `factor`.
    """
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise UserError(f"an image of {width} x {height} pixels is more than {MOST_ASPECT} times as long as wide")
    found = round(height / factor) * factor, round(width / factor) * factor
    if found[0] * found[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    if found[0] * found[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return found


def cut_blocks(image: Image.Image, rows: int, columns: int, patch: int, merge: int, frames: int) -> np.ndarray:
    """uint8[rows * columns, merge² * 3 * frames * patch²]: the image, resized to so many blocks, in raster order.

    A block's patches are in raster order, and a patch is flattened as (channel, frame, row, column); the image is repeated for
    every frame. ValueError unless the image is RGB.
    """
    check_rgb(image)
    side = patch * merge
    pixels = resize(image, rows * side, columns * side).reshape(rows, merge, patch, columns, merge, patch, 3)
    blocks = pixels.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    return np.broadcast_to(blocks, (*blocks.shape[:5], frames, patch, patch)).reshape(rows * columns, -1)
