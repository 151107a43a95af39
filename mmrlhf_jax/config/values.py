"""Types of values that several sections use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrlhf_jax.setting_types import Integer, Number

Dtype = Literal["float32", "bfloat16"]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[Integer, Field(ge=1)]
PartName = Literal["vision_tower", "projector", "newline", "language_model", "reward_head"]
