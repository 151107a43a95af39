"""Where the patches of a frame of any size lie in a square table of learnt positions: four of its rows for each, and weights.

NumPy only. Reference: transformers `vision_utils.py` (`get_vision_interpolation_indices_and_weights`), bilinear with the
corners of frame and table on each other.
"""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=256)
def grid_taps(rows: int, columns: int, merge: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32[U, merge², 4] rows of a table of `side` x `side` positions, float32[U, merge², 4] their weights) of the patches of
    U = `rows` x `columns` blocks, in raster order. Both are read-only. Without a table (`side` 0) they are [U, 0, 4].
    """
    if not side:
        return np.zeros((rows * columns, 0, 4), np.int32), np.zeros((rows * columns, 0, 4), np.float32)
    low, at_row = _along(merge * rows, side)
    left, at_column = _along(merge * columns, side)
    taps = low[:, None, :, None] * side + left[None, :, None, :]
    weights = at_row[:, None, :, None] * at_column[None, :, None, :]

    def by_block(x: np.ndarray) -> np.ndarray:
        x = x.reshape(rows, merge, columns, merge, 4).transpose(0, 2, 1, 3, 4).reshape(rows * columns, merge**2, 4)
        x.setflags(write=False)
        return x

    return by_block(taps.astype(np.int32)), by_block(weights)


def _along(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """([count, 2] neighbours in the table of every patch along one axis, [count, 2] their weights), in float32 as there."""
    place = np.arange(count, dtype=np.float32) * np.float32(side - 1) / np.float32(max(count - 1, 1))
    below = np.floor(place)
    neighbours = below[:, None] + np.arange(2)
    weights = 1 - np.abs(place[:, None] - below[:, None] - np.arange(2, dtype=np.float32))
    return np.minimum(neighbours, side - 1).astype(np.int64), np.maximum(weights, 0).astype(np.float32)
