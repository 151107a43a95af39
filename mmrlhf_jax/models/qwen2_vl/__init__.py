"""The family Qwen2-VL. Reference: transformers `models/qwen2_vl`, Qwen (`Qwen/Qwen2-VL-*`)."""

from mmrlhf_jax.models.qwen2_vl.family import FAMILY

__all__ = ["FAMILY"]
