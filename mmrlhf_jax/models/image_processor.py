"""The image processor's file in a Hugging Face directory: how a checkpoint wants its pixels. No jax here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.family import Checkpoint

# What the pixels must have gone through: the only preprocessing that this project does.
PREPROCESSING = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}


def stated_pixels(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], str]:
    """What the image processor's file says, and where that stands; nothing, at the config, where there is no such file."""
    pixels, where = {}, checkpoint.where
    for name in ("preprocessor_config.json", "processor_config.json"):  # where both say something, the latter counts
        found = checkpoint.files.get(name, {})
        if stated := found.get("image_processor") or (found if "image_processor_type" in found else None):
            pixels, where = stated, f"{checkpoint.directory}/{name}"
    return pixels, where


def check_preprocessing(pixels: Mapping[str, Any], side: int, where: str) -> None:
    """Refuse an image processor that makes other pixels than this project's: a quiet mismatch would spoil every number.

    `side` is the tower's, in pixels.
    """
    for key, expected in PREPROCESSING.items():
        if pixels.get(key, expected) != expected:
            raise UserError(f"{where}: the image processor has {key} {pixels[key]!r}; only {expected!r} is supported")
    size = pixels.get("size") or {}
    if any(length != side for length in (size.values() if isinstance(size, dict) else [size])):
        raise UserError(f"{where}: the image processor's size {size} is not the vision tower's, {side}")
