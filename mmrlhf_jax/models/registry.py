"""The families of models. Adding one: its folder, and its line in `FAMILIES`. No jax here."""

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
}
DEFAULT = "llava_onevision"  # for estimates and measurements that name no model


@cache
def family(model_type: str) -> Family:
    """The family of this name in the registry."""
    return importlib.import_module(FAMILIES[model_type]).FAMILY


def families() -> list[Family]:
    return [family(name) for name in FAMILIES]


def family_of(model: ModelConfig) -> Family:
    """The family that a model's sizes are of."""
    return family(model.model_type)


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """The family of a model with this config.json, which stands at `where`. UserError where there is none."""
    for each in families():
        if each.naming(config) is not None:
            return each
    known = ", ".join(each.title for each in families())
    raise UserError(f"{where}: model_type is {config.get('model_type')!r}; this project reads {known} checkpoints")


def published_config(path: str) -> ModelConfig | None:
    """The sizes of the published model that a path names, of whichever family, or None."""
    return next(filter(None, (each.published(path) for each in families())), None)
