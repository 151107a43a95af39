"""Qwen3-VL as a `Family`: patches of any image size, learnt positions, deepstack, positions on three interleaved axes."""

from __future__ import annotations

from typing import ClassVar

from mmrlhf_jax.models.family import Family
from mmrlhf_jax.models.patch_family import PatchFamily
from mmrlhf_jax.models.patch_processors import BARE_CHAT_TEMPLATE
from mmrlhf_jax.models.qwen3_vl.geometry import PUBLISHED_PIXELS, PUBLISHED_VIDEO_PIXELS, Qwen3Geometry
from mmrlhf_jax.models.qwen3_vl.weights import NAMES


class Qwen3VLFamily(PatchFamily):
    model_type = "qwen3_vl"
    title = "Qwen3-VL"
    architecture = "Qwen3VLForConditionalGeneration"
    processor_class = "Qwen3VLProcessor"
    video_processor_class = "Qwen3VLVideoProcessor"
    image_processor_class = "Qwen2VLImageProcessor"
    publishers: ClassVar = {"hf": "Qwen"}
    language_model = "qwen3"
    parts: ClassVar = {**Family.parts, "deepstack": "projector"}
    geometry = Qwen3Geometry
    published_pixels: ClassVar = PUBLISHED_PIXELS
    published_video_pixels: ClassVar = PUBLISHED_VIDEO_PIXELS
    default_vocabulary = 151936
    chat_template = BARE_CHAT_TEMPLATE
    names = NAMES


FAMILY = Qwen3VLFamily()
