"""The family Qwen3-VL (dense). Reference: transformers `models/qwen3_vl`, Qwen (`Qwen/Qwen3-VL-*`)."""

from mmrlhf_jax.models.qwen3_vl.family import FAMILY

__all__ = ["FAMILY"]
