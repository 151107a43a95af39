"""The section `model`: the model that an experiment starts from, and its precision."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from mmrlhf_jax.config.values import Dtype
from mmrlhf_jax.sections import Section
from mmrlhf_jax.setting_types import PathName


class Model(Section):
    """`path`: a Hugging Face directory or hub id, in either naming.

    `dtype` is the compute dtype, `frozen_dtype` the storage dtype of parameters that do not learn. Parameters that learn,
    adapters and moments are always float32, because a bfloat16 weight does not change at all by an update of less than 1/512 of
    itself. A reward head always computes in float32. `reduce_dtype` is the dtype in which gradients of the layers' matrices are
    summed, over tokens and over the devices of `fsdp`: bfloat16 halves the bytes to send, but rounds every device's sum to 8
    bits. All other gradients (vocabulary, embedding, norms, biases, newline, reward head), and sums over accumulation pieces,
    are always float32. `param_dtype` is accepted as the older name of `frozen_dtype`.

    `attention` is the implementation: `auto` chooses by platform (Pallas kernels on TPU and on GPU, else XLA), the others are
    forced.
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
