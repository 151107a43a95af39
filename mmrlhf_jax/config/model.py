"""The model that an experiment starts from, and in which precision it computes."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from mmrlhf_jax.config.values import Dtype
from mmrlhf_jax.sections import PathName, Section


class Model(Section):
    """`path`: a Hugging Face directory or hub id, in either naming.

    Precision is by role: `dtype` is what the model computes in, `frozen_dtype` what is stored of the parameters that do not
    learn. Those that do, and all that belongs to them (adapters, moments), are float32 whatever these say: in bfloat16 a
    weight does not move at all under a step of less than 1/512 of itself. A reward head always computes in float32.
    `reduce_dtype` is what the gradients of the layers' matrices are summed in, over tokens and over the devices of `fsdp`: with
    bfloat16 half as many bytes travel, and every device's part is rounded to 8 bits. All other gradients (vocabulary,
    embedding, norms, biases, newline, reward head) and the pieces of a batch are summed in float32 in any case.
    `param_dtype`, the older name of `frozen_dtype`, is read as that.

    `attention`: the implementation, by platform (a Pallas kernel on TPU, else XLA) or forced.
    """

    path: PathName
    dtype: Dtype = "bfloat16"
    frozen_dtype: Dtype = "float32"
    reduce_dtype: Dtype = "float32"
    remat: Literal["none", "full", "dots"] = "full"
    attention: Literal["auto", "xla", "pallas"] = "auto"
    reward_head: Literal["tanh", "silu", "linear"] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _older_name(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "param_dtype" not in raw:
            return raw
        if "frozen_dtype" in raw:
            raise ValueError("param_dtype is the older name of frozen_dtype; give one of them")
        return {("frozen_dtype" if key == "param_dtype" else key): value for key, value in raw.items()}
