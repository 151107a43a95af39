"""Cuts decoded images into tiles, exactly as transformers does, and finds the canvas that an image is stretched to.

The pixels are those of transformers' `GotOcr2ImageProcessorPil` before rescaling and normalising, which the device does. NumPy
and Pillow only: data workers import this file.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from mmrlhf_jax.models.tiles import check_rgb, cut_canvas, resize

Grid = tuple[int, int]  # (columns, rows) of tiles


@functools.cache
def grids(least: int, most: int) -> tuple[Grid, ...]:
    """All grids of `least` to `most` tiles, by their number of tiles; among equals the narrower ones come first."""
    sides = range(1, most + 1)
    found = [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


@functools.lru_cache(maxsize=65536)
def best_grid(height: int, width: int, side: int, least: int, most: int) -> Grid:
    """The grid whose aspect is nearest to the image's (`get_optimal_tiled_canvas`).

    Among equally near grids, a later one is taken if its canvas has less than twice the image's area. `side` is the side of a
    tile; `height`, `width` and `side` are in pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no tiles")
    aspect, nearest, best = width / height, float("inf"), (1, 1)
    for columns, rows in grids(least, most):
        distance = abs(aspect - columns / rows)
        if distance < nearest or (distance == nearest and width * height > 0.5 * side * side * columns * rows):
            nearest, best = distance, (columns, rows)
    return best


def cut_tiles(image: Image.Image, side: int, grid: Grid, thumbnail: bool) -> np.ndarray:
    """uint8[tiles, side, side, 3]: an RGB image stretched to its canvas and cut row by row.

    With `thumbnail`, a grid of several tiles is followed by one tile of the whole image.
    """
    check_rgb(image)
    columns, rows = grid
    count = columns * rows
    tiles = np.empty((count + (thumbnail and count > 1), side, side, 3), np.uint8)
    cut_canvas(resize(image, rows * side, columns * side), tiles[:count])
    if len(tiles) > count:
        tiles[count] = resize(image, side, side)
    return tiles
