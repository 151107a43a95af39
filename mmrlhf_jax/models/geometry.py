"""The geometry of a family: how media are cut into tiles and become visual tokens, computed on the host.

A geometry is immutable, hashable and picklable (it is sent to data workers), and needs no jax.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.media import NEWLINE, Media, Tiles, VisualPlan, join
from mmrlhf_jax.models.video import VideoLayout

Size = tuple[int, int]  # (height, width) in pixels


class UnlikeFrames(UserError):
    """The frames of a video have different sizes, which the model cannot take."""


class Geometry(abc.ABC):
    """Media to tiles, and tiles to visual tokens, from sizes alone.

    An implementation is a frozen dataclass whose fields determine both. `images` are the (height, width) of a prompt's images,
    and `video` is the layout of its video; a prompt has images or a video. `most_tiles` limits the number of tiles of all media
    of a prompt (0 = no limit).
    """

    image_size: int  # side of a tile, in pixels
    taps: ClassVar[int]  # K: a visual token is a weighted sum of at most so many features
    family: ClassVar[str]  # the family's name in the registry
    position_axes: ClassVar[int] = 1  # number of axes of a token's position: 1 or 3
    has_videos: ClassVar[bool] = True  # False: `plans` raises UserError for a video
    tiles_apart: ClassVar[bool] = True  # a tile of media sees itself alone in the tower

    @property
    @abc.abstractmethod
    def features(self) -> int:
        """The number of features that the model makes of a tile."""

    def within_pixels(self, most: int | None) -> Geometry:
        """The geometry that resizes images to at most so many pixels; None: this one. UserError if its tiles have one size."""
        if most is None:
            return self
        raise UserError("data.max_pixels: this model's images are cut into tiles of one size; leave it out")

    @abc.abstractmethod
    def low_detail(self) -> Geometry:
        """The geometry that shows every image small, whatever its size: as one tile, or as about 512 x 512 pixels."""

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """The shape of the pixels of a tile."""
        return (self.image_size, self.image_size, 3)

    @abc.abstractmethod
    def plans(self, images: Sequence[Size], video: VideoLayout | None = None, most_tiles: int = 0) -> list[VisualPlan]:
        """One plan per medium: for each image in order, or one for the video. UserError for media that the model cannot take,
        or of whose video more must be known."""

    @abc.abstractmethod
    def cut_images(self, images: Sequence[Image.Image], most_tiles: int = 0) -> np.ndarray:
        """uint8[t, *unit_shape]: the tiles of a prompt's images (RGB), in the order of their plans."""

    @abc.abstractmethod
    def cut_frames(self, frames: Sequence[Image.Image], video: VideoLayout | None = None, most_tiles: int = 0) -> np.ndarray:
        """uint8[t, *unit_shape]: the tiles of a video's frames (RGB, after `frame_numbers`). `video` is the layout of the whole
        video, None if `frames` are all that there is of it."""

    @abc.abstractmethod
    def smaller_media(self, images: Sequence[Size], video: VideoLayout | None = None) -> list[int]:
        """Values of `most_tiles` that reduce the tiles of a prompt's media, in descending order."""

    def frame_numbers(self, video: VideoLayout, most_tiles: int = 0) -> list[int]:
        """The indices of the frames to keep: all, or `most_tiles` evenly spaced ones."""
        return evenly_spaced(video.frames, min(video.frames, most_tiles or video.frames))

    def settings(self) -> dict[str, Any]:
        """Everything that determines tokens and pixels, as JSON values; part of the fingerprint of a data set's index."""
        return {"family": self.family} | dataclasses.asdict(self)

    def most_tiles(self, tokens: int, images: int, frames: int) -> int:
        """The most tiles of media of at most so many visual tokens, images and frames; at least 1."""
        side = self.image_size
        wide = [(side * a, side * b) for a in range(1, 11) for b in range(1, 11)]  # from one tile to the most of one image
        forms = [([size], None) for size in wide] + [([(side, side)] * count, None) for count in range(1, images + 1)]
        forms += [([], VideoLayout(count)) for count in range(1, frames + 1)]
        plans = (self.plans(sizes, video) for sizes, video in forms)
        return max((sum(p.tiles for p in plan) for plan in plans if sum(p.tokens for p in plan) <= tokens), default=1)

    def padded_tiles(self, tiles: int) -> int:
        """The number of tiles of the program that encodes so many in inference: a power of two, so that programs are few."""
        return 1 << (tiles - 1).bit_length()

    def pairs_of_tiles(self, plans: Sequence[VisualPlan]) -> int:
        """The number of pairs of these media's tiles that see each other in the tower; if `tiles_apart`, that of the tiles."""
        return sum(plan.tiles for plan in plans)

    def empty(self, *, slots: int, tiles: int, visual: int) -> Media:
        """The empty media of a row with so many slots, tiles and visual slots."""
        return Tiles(
            tiles=np.zeros((tiles, self.image_size, self.image_size, 3), np.uint8),
            slots=np.full(visual, slots, np.int32),
            taps=np.zeros((visual, self.taps), np.int32),
            weights=np.zeros((visual, self.taps), np.float32),
        )

    def of_group(self, pixels: np.ndarray, plans: Sequence[VisualPlan], slots: np.ndarray, trunk: int) -> Media:
        """The media of a group, with indices relative to the group.

        `slots` are its tree's visual slots, int32[v], and `trunk` is the length of its trunk. Usually the media's slots are in
        the trunk, once. If conversations differ before the media, every branch has its own slots for the same tiles. This
        happens when the question has media inside its text and only some responses have a critique, so that the prompts differ.
        """
        plan = join(plans, self.taps)
        taps, weights = plan.taps, plan.weights
        if len(slots) != plan.tokens:
            shared = int((slots < trunk).sum())
            own = np.arange(len(slots) - shared) % (plan.tokens - shared)
            numbers = np.concatenate([np.arange(shared), shared + own])
            taps, weights = taps[numbers], weights[numbers]
        return Tiles(pixels, slots, taps, weights)

    def place(self, row: Media, group: Media, *, slot: int, tile: int, visual: int) -> None:
        """Write a group's media into a row's media, with these offsets in slots, tiles and visual slots."""
        newline = row.units * self.features
        row.pixels[tile : tile + group.units] = group.pixels
        here = slice(visual, visual + len(group.slots))
        row.slots[here] = group.slots + slot
        row.taps[here] = np.where(group.taps == NEWLINE, newline, group.taps + tile * self.features)
        row.weights[here] = group.weights


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` of the numbers 0 .. total - 1, from the first to the last, rounded down."""
    return np.linspace(0, total - 1, count, dtype=int).tolist()
