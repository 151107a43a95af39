"""Steps of cutting decoded images into tiles that all families share. NumPy and Pillow only: data workers import this file."""

from __future__ import annotations

import numpy as np
from PIL import Image


def check_rgb(image: Image.Image) -> None:
    """ValueError unless the image is RGB."""
    if image.mode != "RGB":
        raise ValueError(f"expected an RGB image (see decode_image), found mode {image.mode}")


def resize(image: Image.Image, height: int, width: int) -> np.ndarray:
    """uint8[height, width, 3]: the image resized by Pillow's bicubic filter."""
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def cut_canvas(canvas: np.ndarray, tiles: np.ndarray) -> None:
    """Fill `tiles`, uint8[rows * columns, side, side, 3], with the tiles of a canvas of that many pixels, row by row."""
    side = tiles.shape[1]
    rows, columns = canvas.shape[0] // side, canvas.shape[1] // side
    tiles.reshape(rows, columns, side, side, 3)[:] = canvas.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
