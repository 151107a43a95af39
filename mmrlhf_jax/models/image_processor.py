"""The image processor's settings in a Hugging Face directory, which say how pixels are preprocessed. It imports no jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.family import Checkpoint
from mmrlhf_jax.models.tower_config import TileTower

# The only preprocessing that this project implements; resample 3 is bicubic.
PREPROCESSING = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
# The pixel statistics of a file that does not state them: the defaults of transformers' image processors, which are CLIP's.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pixel_settings(vision: TileTower) -> dict[str, Any]:
    """The settings of an image processor's file that describe the preprocessing of this tower's pixels."""
    return PREPROCESSING | {
        "do_convert_rgb": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "rescale_factor": vision.rescale,
        "size": {"height": vision.image_size, "width": vision.image_size},
    }


def stated_pixels(checkpoint: Checkpoint) -> tuple[Mapping[str, Any] | None, str]:
    """(the image processor's settings, their file); without such a file, (None, the config's location).

    As in transformers, `image_processor` of processor_config.json takes precedence over preprocessor_config.json, which counts
    whether it names a class or not. A file without any settings means the defaults of transformers' class.
    """
    joint = checkpoint.file("processor_config.json") or {}
    if "image_processor" in joint:
        return joint["image_processor"], f"{checkpoint.directory}/processor_config.json: image_processor"
    alone = checkpoint.file("preprocessor_config.json")
    return alone, checkpoint.where if alone is None else f"{checkpoint.directory}/preprocessor_config.json"


def stated_video_pixels(checkpoint: Checkpoint) -> tuple[Mapping[str, Any] | None, str]:
    """(the video processor's settings, their file); (None, "") if there is none, and then transformers takes
    preprocessor_config.json for videos as well."""
    joint = checkpoint.file("processor_config.json") or {}
    if "video_processor" in joint:
        return joint["video_processor"], f"{checkpoint.directory}/processor_config.json: video_processor"
    alone = checkpoint.file("video_preprocessor_config.json")
    return alone, "" if alone is None else f"{checkpoint.directory}/video_preprocessor_config.json"


def check_preprocessing(pixels: Mapping[str, Any], side: int, where: str) -> None:
    """UserError for an image processor that computes other pixels than this project, because the model would silently get wrong
    inputs.

    `side` is the size of the vision tower's images in pixels.
    """
    for key, expected in PREPROCESSING.items():
        if pixels.get(key, expected) != expected:
            raise UserError(f"{where}: the image processor has {key} {pixels[key]!r}; only {expected!r} is supported")
    size = pixels.get("size") or {}
    if any(length != side for length in (size.values() if isinstance(size, dict) else [size])):
        raise UserError(f"{where}: the image processor's size {size} is not {side}, that of config.json's vision tower")
