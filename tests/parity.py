"""The same prompt for this project and for transformers, and transformers' model as the oracle. Needs torch."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import torch

from mmrlhf_jax.models.media import Patches, Tiles
from mmrlhf_jax.models.vision_language import VisionLanguage
from tests import tiny
from tests.families import FAMILIES
from tests.prompts import Shape, about_frames, about_pictures, noise


class Prompt(NamedTuple):
    """int32[1, S] ids and a row for this project, and transformers' inputs for the same prompt."""

    row: tuple[np.ndarray, np.ndarray, np.ndarray, Tiles | Patches]
    inputs: dict
    ids: np.ndarray

    @property
    def length(self) -> int:
        return len(self.ids)


def image_prompt(model: VisionLanguage, sizes: list[tuple[int, int]], directory, shape: Shape | None = None) -> Prompt:
    """Random text around noise pictures of these (height, width), which transformers' own processor cuts for transformers."""
    pictures = noise(sizes)
    ids, row = about_pictures(model, directory, pictures, shape)
    inputs = {"input_ids": torch.tensor(ids[None]).long()} | FAMILIES[model.config.model_type].id_inputs(ids[None])
    if sizes:
        inputs |= FAMILIES[model.config.model_type].picture_inputs(directory, pictures)
    return Prompt(row, inputs, ids)


def video_prompt(model: VisionLanguage, frames: int, directory, shape: Shape | None = None) -> Prompt:
    """Random text around noise frames. Both sides get the same pixels (transformers resizes videos with torchvision)."""
    pictures = noise([(72, 128)] * frames)
    ids, row = about_frames(model, directory, pictures, shape)
    return Prompt(row, video_inputs(model.config, pictures, ids, row[1][0, : len(ids)]), ids)


def video_inputs(config, pictures: list, ids: np.ndarray, positions: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    """transformers' inputs for a prompt `ids` about a video whose frames are `pictures`. `positions` are given to families that
    have three axes of them; None: transformers makes its own."""
    inputs = FAMILIES[config.model_type].frame_inputs(config, pictures, ids, positions)
    return inputs | {"input_ids": torch.tensor(inputs["input_ids"][None]).long()}


@jax.jit
def embedded_hidden_logits(model: VisionLanguage, tokens, positions, visible_until, media):
    """What enters the language model, its hidden states after the final norm, and the logits."""
    with jax.default_matmul_precision("highest"):
        embedded, deep = model.embed(tokens, media)
        hidden = model.language(embedded, positions, visible_until, deep)
        return embedded, hidden, hidden @ model.language.vocabulary()


def ours(model: VisionLanguage, prompt: Prompt) -> list[np.ndarray]:
    """`embedded_hidden_logits` of a prompt's own slots."""
    return [np.asarray(x)[0, : prompt.length] for x in embedded_hidden_logits(model, *prompt.row)]


def theirs(model, prompt: Prompt) -> list[np.ndarray]:
    """The same three of transformers' model."""
    with torch.no_grad():
        out = model(**prompt.inputs, output_hidden_states=True)
    return [x[0].numpy() for x in (out.hidden_states[0], out.hidden_states[-1], out.logits)]


def load(directory) -> VisionLanguage:
    return tiny.on_one_device(directory, remat="none")


def oracle(directory):
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()
