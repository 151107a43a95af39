"""The family InternVL (2, 2.5, 3; sizes with Qwen2 language models). Reference: transformers `models/internvl`, OpenGVLab."""

from mmrlhf_jax.models.internvl.family import FAMILY

__all__ = ["FAMILY"]
