"""The sizes of a model before any of it is loaded, or fetched."""

from __future__ import annotations

from mmrlhf_jax.hub_id import is_hub_id
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig, read_config
from mmrlhf_jax.models.llava_onevision.published import published_config


def known_sizes(path: str) -> LlavaOnevisionConfig:
    """Of a published model by its name; of any other from its directory. UserError where that is no model."""
    published = published_config(path) if is_hub_id(path) else None
    return published or read_config(local_directory(path))
