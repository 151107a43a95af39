"""Positions of a conversation's tokens on three axes: time, row and column.

Reference: `get_rope_index` in transformers `models/qwen2_5_vl/modeling_qwen2_5_vl.py`, for texts and images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Run = int | tuple[int, int]  # a text's number of tokens, or the (rows, columns) of an image's visual tokens


def three_axes(runs: Sequence[Run]) -> np.ndarray:
    """int32[N, 3]: the positions of the tokens of consecutive runs.

    A token of a text has the same position on every axis, and the next one is one further. All tokens of an image share the
    time at which it begins; their rows and columns are counted from there. What follows an image of r x c tokens begins
    max(r, c) after it, which is behind all of its positions.
    """
    found, now = [np.zeros((0, 3), np.int64)], 0
    for run in runs:
        if isinstance(run, int):
            found.append(np.repeat(now + np.arange(run)[:, None], 3, axis=1))
            now += run
        else:
            rows, columns = run
            row, column = np.divmod(np.arange(rows * columns), columns)
            found.append(now + np.stack([np.zeros_like(row), row, column], axis=1))
            now += max(rows, columns)
    return np.concatenate(found).astype(np.int32)
