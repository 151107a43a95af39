"""Qwen2-VL as a `Family`: patches of any image size, positions on three axes."""

from __future__ import annotations

from typing import ClassVar

from mmrlhf_jax.models.patch_family import PatchFamily
from mmrlhf_jax.models.qwen2_vl.geometry import Qwen2Geometry
from mmrlhf_jax.models.qwen2_vl.weights import NAMES


class Qwen2VLFamily(PatchFamily):
    model_type = "qwen2_vl"
    title = "Qwen2-VL"
    architecture = "Qwen2VLForConditionalGeneration"
    processor_class = "Qwen2VLProcessor"
    video_processor_class = "Qwen2VLVideoProcessor"
    image_processor_class = "Qwen2VLImageProcessor"
    publishers: ClassVar = {"hf": "Qwen"}
    language_model = "qwen2"
    geometry = Qwen2Geometry
    default_vocabulary = 152064
    names = NAMES


FAMILY = Qwen2VLFamily()
