"""A prompt about pictures or frames, as one row of a model of any family. Nothing here needs torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from mmrlhf_jax.data.tokens import PieceTokenizer, token_tree
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.media import Patches, Tiles, VisualPlan
from mmrlhf_jax.models.video import VideoLayout
from mmrlhf_jax.models.vision_language import VisionLanguage
from mmrlhf_jax.pieces import Media, Text

Row = tuple[
    np.ndarray, np.ndarray, np.ndarray, Tiles | Patches
]  # tokens, positions, visible_until and media, with a first axis of 1


class Shape(NamedTuple):
    """Slots, tiles and visual tokens of a row."""

    slots: int
    tiles: int
    visual: int


def noise(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """Pictures of these (height, width)."""
    rng = np.random.default_rng(len(sizes))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def about_pictures(
    model: VisionLanguage, directory, pictures: list[Image.Image], shape: Shape | None = None
) -> tuple[np.ndarray, Row]:
    """int32[N] ids of random text around the pictures, and the row of them; the tokenizer is that of `directory`."""
    geometry = model.config.geometry
    plans = geometry.plans([(picture.height, picture.width) for picture in pictures])
    return _row(model, directory, plans, geometry.cut_images(pictures), shape)


def about_frames(
    model: VisionLanguage, directory, frames: list[Image.Image], shape: Shape | None = None
) -> tuple[np.ndarray, Row]:
    """As `about_pictures`, of one video."""
    geometry = model.config.geometry
    video = every_frame(len(frames), (frames[0].height, frames[0].width))
    return _row(model, directory, geometry.plans([], video), geometry.cut_frames(frames, video), shape)


def every_frame(count: int, size: tuple[int, int] | None = None, rate: float | None = 8.0) -> VideoLayout:
    """A video of which every frame is taken."""
    return VideoLayout(count, size, tuple(range(count)), count, rate)


def _row(model, directory, plans: list[VisualPlan], tiles: np.ndarray, shape: Shape | None) -> tuple[np.ndarray, Row]:
    """A row of `shape`, what the prompt does not need of it padding; without a shape the row is as long as the prompt."""
    rng, geometry = np.random.default_rng(len(tiles)), model.config.geometry
    pieces = [Text(_letters(rng, 9))]
    for number in range(len(plans)):
        pieces += [Media(number), Text(_letters(rng, 5))]
    tokenizer = PieceTokenizer(load_tokenizer(directory), model.config.image_token, position_axes=geometry.position_axes)
    tree = token_tree([tokenizer.conversation(pieces, [plan.pieces for plan in plans])])
    length = len(tree.tokens)
    slots, tile_count, visual = shape or Shape(length, max(len(tiles), 1), max(len(tree.visual), 1))
    tokens, positions = (np.zeros((1, slots, *values.shape[1:]), np.int32) for values in (tree.tokens, tree.positions))
    visible_until = np.arange(1, slots + 1, dtype=np.int32)[None]
    tokens[0, :length], positions[0, :length], visible_until[0, :length] = tree.tokens, tree.positions, tree.visible_until
    media = geometry.empty(slots=slots, tiles=tile_count, visual=visual)
    geometry.place(media, geometry.of_group(tiles, plans, tree.visual, tree.trunk), slot=0, tile=0, visual=0)
    return tree.tokens, (tokens, positions, visible_until, type(media)(*(array[None] for array in media)))


def _letters(rng: np.random.Generator, count: int) -> str:
    return "".join(chr(code) for code in rng.integers(33, 127, count))
