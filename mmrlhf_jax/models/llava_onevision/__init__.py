"""The family LLaVA-OneVision. Reference: transformers `models/llava_onevision`, LLaVA-NeXT (`lmms-lab`)."""

from mmrlhf_jax.models.llava_onevision.family import FAMILY

__all__ = ["FAMILY"]
