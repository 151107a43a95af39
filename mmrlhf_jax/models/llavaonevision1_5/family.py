"""LLaVA-OneVision-1.5 as a `Family`: patches of any image size, a class token before each image, Qwen3 as language model."""

from __future__ import annotations

from typing import ClassVar

from mmrlhf_jax.models.llavaonevision1_5.geometry import RiceGeometry
from mmrlhf_jax.models.llavaonevision1_5.weights import NAMES
from mmrlhf_jax.models.patch_family import PatchFamily


class LlavaOnevision15Family(PatchFamily):
    model_type = "llavaonevision1_5"
    title = "LLaVA-OneVision-1.5"
    architecture = "LLaVAOneVision1_5_ForConditionalGeneration"
    processor_class = "Qwen2_5_VLProcessor"
    video_processor_class = "Qwen2VLVideoProcessor"
    image_processor_class = "Qwen2VLImageProcessor"
    publishers: ClassVar = {"hf": "lmms-lab"}
    language_model = "qwen3"
    geometry = RiceGeometry
    default_vocabulary = 151936
    names = NAMES


FAMILY = LlavaOnevision15Family()
