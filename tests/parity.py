"""The same prompt for this project and for transformers, and transformers' model as the oracle. Needs torch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import torch
from PIL import Image

from mmrlhf_jax.models.llava_onevision.images import cut_frames, cut_tiles
from mmrlhf_jax.models.llava_onevision.model import LlavaOnevision
from mmrlhf_jax.models.llava_onevision.vision_plan import plan_images, plan_video
from mmrlhf_jax.models.media import NEWLINE, Tiles, VisualPlan, join
from tests import tiny


class Shape(NamedTuple):
    """Slots, tiles and visual tokens of a row."""

    slots: int
    tiles: int
    visual: int


class Prompt(NamedTuple):
    """int32[1, S] ids and a row for this project, and transformers' inputs for the same prompt."""

    row: tuple[np.ndarray, np.ndarray, np.ndarray, Tiles]
    inputs: dict
    ids: np.ndarray

    @property
    def length(self) -> int:
        return len(self.ids)


def image_prompt(model: LlavaOnevision, sizes: list[tuple[int, int]], directory, shape: Shape | None = None) -> Prompt:
    """Random text around noise pictures of these (height, width), which transformers' own processor cuts for transformers."""
    from transformers import LlavaOnevisionImageProcessorPil

    rng = np.random.default_rng(len(sizes))
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
    plans = plan_images(sizes, model.config.geometry) if sizes else []
    ids = _ids(rng, plans, model.config.image_token)
    inputs = {"input_ids": torch.tensor(ids[None])}
    if sizes:
        processor = LlavaOnevisionImageProcessorPil.from_pretrained(directory)
        inputs |= processor(images=[pictures], return_tensors="pt")
    tiles = [cut_tiles(picture, model.config.geometry, anyres=len(sizes) == 1) for picture in pictures]
    return Prompt(row(model, ids, tiles, join(plans), shape), inputs, ids)


def video_prompt(model: LlavaOnevision, frames: int, shape: Shape | None = None) -> Prompt:
    """Random text around noise frames. Both sides get the same pixels (transformers resizes videos with torchvision)."""
    rng, vision = np.random.default_rng(frames), model.config.vision
    pictures = [Image.fromarray(rng.integers(0, 256, (72, 128, 3), dtype=np.uint8)) for _ in range(frames)]
    tiles = cut_frames(pictures, model.config.geometry)
    plan = plan_video(frames, model.config.geometry)
    ids = _ids(rng, [plan], model.config.image_token)
    pixels = (tiles.astype(np.float32) * vision.rescale - np.float32(vision.image_mean)) / np.float32(vision.image_std)
    theirs = np.where(ids == model.config.image_token, model.config.video_token, ids)
    pixels = torch.tensor(pixels.transpose(0, 3, 1, 2)[None])
    inputs = {"input_ids": torch.tensor(theirs[None]), "pixel_values_videos": pixels}
    return Prompt(row(model, ids, [tiles], plan, shape), inputs, ids)


def row(model: LlavaOnevision, ids: np.ndarray, tiles: list[np.ndarray], plan: VisualPlan, shape: Shape | None = None):
    """A row of `shape`, the rest of it padding; without a shape the row is as long as the prompt."""
    slots, tile_count, visual = shape or Shape(len(ids), max(plan.tiles, 1), max(plan.tokens, 1))
    side = model.config.geometry.image_size
    tokens, positions = np.zeros((1, slots), np.int32), np.zeros((1, slots), np.int32)
    tokens[0, : len(ids)], positions[0, : len(ids)] = ids, np.arange(len(ids))
    visible_until = np.where(np.arange(slots) < len(ids), len(ids), np.arange(slots) + 1)[None].astype(np.int32)
    images = np.zeros((1, tile_count, side, side, 3), np.uint8)
    placed, taps = np.full((1, visual), slots, np.int32), np.zeros((1, visual, 4), np.int32)
    weights = np.zeros((1, visual, 4), np.float32)
    if plan.tokens:
        images[0, : plan.tiles] = np.concatenate(tiles)
        placed[0, : plan.tokens] = np.flatnonzero(ids == model.config.image_token)
        taps[0, : plan.tokens] = np.where(plan.taps == NEWLINE, tile_count * plan.features, plan.taps)
        weights[0, : plan.tokens] = plan.weights
    return tokens, positions, visible_until, Tiles(images, placed, taps, weights)


@jax.jit
def embedded_hidden_logits(model: LlavaOnevision, tokens, positions, visible_until, visual):
    """What enters the language model, its hidden states after the final norm, and the logits."""
    with jax.default_matmul_precision("highest"):
        embedded = model.embed(tokens, visual)
        hidden = model.language(embedded, positions, visible_until)
        return embedded, hidden, hidden @ model.language.vocabulary()


def ours(model: LlavaOnevision, prompt: Prompt) -> list[np.ndarray]:
    """`embedded_hidden_logits` of a prompt's own slots."""
    return [np.asarray(x)[0, : prompt.length] for x in embedded_hidden_logits(model, *prompt.row)]


def theirs(model, prompt: Prompt) -> list[np.ndarray]:
    """The same three of transformers' model."""
    with torch.no_grad():
        out = model(**prompt.inputs, output_hidden_states=True)
    return [x[0].numpy() for x in (out.hidden_states[0], out.hidden_states[-1], out.logits)]


def load(directory) -> LlavaOnevision:
    return tiny.on_one_device(directory, remat="none")


def oracle(directory):
    from transformers import LlavaOnevisionForConditionalGeneration

    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()


def _ids(rng: np.random.Generator, plans, image_token: int) -> np.ndarray:
    ids = [*rng.integers(0, 256, 9)]
    for plan in plans:
        ids += [image_token] * plan.tokens + [*rng.integers(0, 256, 5)]
    return np.array(ids)
