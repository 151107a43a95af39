"""Positions of a conversation's tokens on three axes: time, row and column.

Reference: `get_rope_index` in transformers `models/qwen2_5_vl/modeling_qwen2_5_vl.py`, as Qwen2.5-VL's release has it. Later
versions let the text behind a long clip overlap it in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Clip(NamedTuple):
    """The visual tokens of `frames` frames, each of `rows` x `columns`, which are `interval` positions of time apart."""

    frames: int
    rows: int
    columns: int
    interval: float = 1.0


Run = int | tuple[int, int] | Clip  # a text's number of tokens, the (rows, columns) of an image's visual tokens, or a clip's


def three_axes(runs: Sequence[Run]) -> np.ndarray:
    """int32[N, 3]: the positions of the tokens of consecutive runs.

    A token of a text has the same position on every axis, and the next one is one further. All tokens of an image share the
    time at which it begins; their rows and columns are counted from there. The times of a clip's frames are multiples of its
    interval, rounded down, from where it begins. What follows an image or a clip begins one behind all of its positions.
    """
    found, now = [np.zeros((0, 3), np.int64)], 0
    for run in runs:
        if isinstance(run, int):
            found.append(np.repeat(now + np.arange(run)[:, None], 3, axis=1))
            now += run
        else:
            clip = run if isinstance(run, Clip) else Clip(1, *run)
            times = np.asarray([math.floor(frame * clip.interval) for frame in range(clip.frames)])
            frame, row, column = np.unravel_index(np.arange(math.prod(clip[:3])), clip[:3])
            found.append(now + np.stack([times[frame], row, column], axis=1))
            now = int(found[-1].max()) + 1
    return np.concatenate(found).astype(np.int32)
