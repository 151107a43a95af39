"""The registry of model families. To add one, add its folder and its line in `FAMILIES`. This module imports no jax."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.family import Family, ModelConfig

# model_type of a Hugging Face config.json -> module whose `FAMILY` is the family.
FAMILIES = {
    "llava_onevision": "mmrlhf_jax.models.llava_onevision",
    "internvl": "mmrlhf_jax.models.internvl",
    "qwen2_vl": "mmrlhf_jax.models.qwen2_vl",
    "qwen2_5_vl": "mmrlhf_jax.models.qwen2_5_vl",
    "qwen3_vl": "mmrlhf_jax.models.qwen3_vl",
    "llavaonevision1_5": "mmrlhf_jax.models.llavaonevision1_5",
}
DEFAULT = "llava_onevision"  # the family for estimates and benchmarks if no model is named


@cache
def family(model_type: str) -> Family:
    """The family of this name in the registry."""
    return importlib.import_module(FAMILIES[model_type]).FAMILY


def families() -> list[Family]:
    return [family(name) for name in FAMILIES]


def family_of(model: ModelConfig) -> Family:
    """The family of a model with these sizes."""
    return family(model.model_type)


def parts_of(model: ModelConfig) -> dict[str, str]:
    """`Family.parts` of a model with these sizes, without the reward head if it has none."""
    parts = family_of(model).parts
    return {name: part for name, part in parts.items() if name != "reward_head" or model.reward_head is not None}


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """The family of a model with this config.json. UserError if there is none; `where` is the file's path for the message."""
    for each in families():
        if each.naming(config) is not None:
            return each
    known = ", ".join(each.title for each in families())
    raise UserError(f"{where}: model_type is {config.get('model_type')!r}; this project reads {known} checkpoints")


def bench_configs() -> dict[str, ModelConfig]:
    """Sizes for benchmarks without a checkpoint: SIZE of the default family, FAMILY/SIZE of the others."""
    found = dict(family(DEFAULT).bench_configs())
    for each in families():
        if each.model_type != DEFAULT:
            found |= {f"{each.model_type}/{name}": sizes for name, sizes in each.bench_configs().items()}
    return found


def published_config(path: str) -> ModelConfig | None:
    """The sizes of the published model, of any family, with this hub id or directory name; None if there is none."""
    return next(filter(None, (each.published(path) for each in families())), None)
