"""The family Qwen2.5-VL. Reference: transformers `models/qwen2_5_vl`, Qwen (`Qwen/Qwen2.5-VL-*`)."""

from mmrlhf_jax.models.qwen2_5_vl.family import FAMILY

__all__ = ["FAMILY"]
