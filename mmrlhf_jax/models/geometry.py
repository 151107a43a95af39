"""How a family of models cuts media, on the host: what every geometry of tiles shares, and what it must say for itself.

A geometry is immutable and hashable, can be pickled (data workers get one), and needs no jax.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmrlhf_jax.models.media import NEWLINE, Tiles, VisualPlan, join

Size = tuple[int, int]  # (height, width) in pixels


class Geometry(abc.ABC):
    """Media to tiles, and tiles to visual tokens, from sizes alone.

    An implementation is a frozen dataclass with the fields that decide either. `images` are the (height, width) of a prompt's
    images and `frames` the number of its video's frames, 0 without one; a prompt has one or the other. `most_tiles` limits the
    tiles of all media of a prompt (0 = any number).
    """

    image_size: int  # side of a tile, in pixels
    taps: ClassVar[int]  # of how many features a visual token is made at most (K)
    position_axes: ClassVar[int] = 1  # of a token's position: 1, or 3

    @property
    @abc.abstractmethod
    def features(self) -> int:
        """Features that the model makes of a tile."""

    @abc.abstractmethod
    def plans(self, images: Sequence[Size], frames: int, most_tiles: int = 0) -> list[VisualPlan]:
        """One plan per medium: the images in order, or the video as one."""

    @abc.abstractmethod
    def cut_images(self, images: Sequence[Image.Image], most_tiles: int = 0) -> np.ndarray:
        """uint8[t, H, H, 3]: the tiles of a prompt's images (RGB), in the order of their plans."""

    @abc.abstractmethod
    def cut_frames(self, frames: Sequence[Image.Image]) -> np.ndarray:
        """uint8[t, H, H, 3]: the tiles of a video's frames (RGB), those that are kept."""

    @abc.abstractmethod
    def fewer_tiles(self, images: Sequence[Size], frames: int) -> list[int]:
        """Limits `most_tiles` that bring a prompt's media down to fewer tiles than they have, most first."""

    def frame_numbers(self, frames: int, most_tiles: int = 0) -> list[int]:
        """The frames of a video that are kept: all, or as many evenly spaced ones as the limit leaves."""
        return np.linspace(0, frames - 1, min(frames, most_tiles or frames), dtype=int).tolist()

    def settings(self) -> dict[str, Any]:
        """Everything that decides tokens and pixels, as JSON values: a part of what a data set's index is known by."""
        return dataclasses.asdict(self)

    def empty(self, *, slots: int, tiles: int, visual: int) -> Tiles:
        """The media of a row of so many slots, tiles and visual slots, with nothing in it."""
        return Tiles(
            tiles=np.zeros((tiles, self.image_size, self.image_size, 3), np.uint8),
            slots=np.full(visual, slots, np.int32),
            taps=np.zeros((visual, self.taps), np.int32),
            weights=np.zeros((visual, self.taps), np.float32),
        )

    def of_group(self, tiles: np.ndarray, plans: Sequence[VisualPlan], slots: np.ndarray, trunk: int) -> Tiles:
        """The media of a group, before it has a place in a row.

        `slots` are its tree's visual slots, int32[v], and `trunk` is the length of its trunk. Media stand in the trunk, once,
        unless conversations differ before them: a critique's prompt and the plain one of a response without a critique do,
        where the question has its media inside the text. Every branch then has its own slots for the same tiles.
        """
        plan = join(plans, self.taps)
        taps, weights = plan.taps, plan.weights
        if len(slots) != plan.tokens:
            shared = int((slots < trunk).sum())
            own = np.arange(len(slots) - shared) % (plan.tokens - shared)
            numbers = np.concatenate([np.arange(shared), shared + own])
            taps, weights = taps[numbers], weights[numbers]
        return Tiles(tiles, slots, taps, weights)

    def place(self, row: Tiles, group: Tiles, *, slot: int, tile: int, visual: int) -> None:
        """Write a group's media into a row's, behind so many slots, tiles and visual slots of the groups before it."""
        newline = len(row.tiles) * self.features
        row.tiles[tile : tile + len(group.tiles)] = group.tiles
        here = slice(visual, visual + len(group.slots))
        row.slots[here] = group.slots + slot
        row.taps[here] = np.where(group.taps == NEWLINE, newline, group.taps + tile * self.features)
        row.weights[here] = group.weights
