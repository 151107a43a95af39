"""Qwen2.5-VL as a `Family`: patches of any image size, windows, positions on three axes."""

from __future__ import annotations

from typing import ClassVar

from mmrlhf_jax.models.patch_family import PatchFamily
from mmrlhf_jax.models.qwen2_5_vl.geometry import Qwen25Geometry
from mmrlhf_jax.models.qwen2_5_vl.weights import NAMES


class Qwen25VLFamily(PatchFamily):
    model_type = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    processor_class = "Qwen2_5_VLProcessor"
    video_processor_class = "Qwen2VLVideoProcessor"
    image_processor_class = "Qwen2VLImageProcessor"
    publishers: ClassVar = {"hf": "Qwen"}
    language_model = "qwen2"
    geometry = Qwen25Geometry
    default_vocabulary = 152064
    names = NAMES


FAMILY = Qwen25VLFamily()
