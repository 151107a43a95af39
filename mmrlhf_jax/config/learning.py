"""The sections on learning: which parts are trained, adapters, optimizer, and the guard against bad steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from mmrlhf_jax.config.values import Count, Dtype, NonNegative, PartName, Positive
from mmrlhf_jax.sections import Section
from mmrlhf_jax.setting_types import AboveOne, BelowOne, Flag

# The largest beta1 for a bfloat16 moment. With 8 bits of precision a moment that decays by less than 1/512 per step does not
# change at all; at a decay of 1/50 about a tenth of it is lost to rounding.
SLOWEST_IN_BFLOAT16 = 0.98


class Trains(Section):
    """Which parts learn. A part that the model lacks does not, whatever is said here: for example the newline, which only some
    families have, or the reward head of a policy."""

    vision_tower: Flag = False
    projector: Flag = True
    newline: Flag = True
    language_model: Flag = True
    reward_head: Flag = True


AdaptedPart = Literal["vision_tower", "projector", "language_model", "reward_head"]


class Lora(Section):
    """Parts that learn through LoRA adapters instead of full training; the defaults are the released code's.

    `layers` are the names of the linear layers that get adapters (q, k, v, o, gate, up, down, dense, out, ...); None means all
    linear layers of these parts except the vocabulary projection and the patch embedding.
    """

    parts: Annotated[tuple[AdaptedPart, ...], Field(min_length=1)] = ("language_model",)
    rank: Count = 64
    alpha: Positive = 16.0
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _older_key(cls, raw: Any) -> Any:
        """Accept `dtype: float32` in the configuration of older runs; adapters are always float32."""
        if not isinstance(raw, dict) or "dtype" not in raw:
            return raw
        if raw["dtype"] != "float32":
            raise ValueError("adapters learn in float32 and compute in model.dtype; leave dtype out")
        return {key: value for key, value in raw.items() if key != "dtype"}


class Optimizer(Section):
    """AdamW, linear warm-up, cosine decay to `final_fraction` of the peak; gradients clipped to `max_grad_norm`.

    `part_rates` are peak learning rates of single parts. `algorithm: muon` updates the kernels of the stacked layers by
    orthogonalised momentum, with the peak `matrix_learning_rate` (None: `learning_rate`), and everything else by AdamW.

    `mu_dtype` is the dtype of the first moment; bfloat16 is allowed for a `beta1` of at most 0.98, because with a larger one
    the moment would not decay. The second moment is always float32.
    """

    algorithm: Literal["adamw", "muon"] = "adamw"
    learning_rate: Positive = 1e-6
    matrix_learning_rate: Positive | None = None
    part_rates: dict[PartName, Positive] = Field(default_factory=dict)
    warmup_ratio: BelowOne = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    final_fraction: NonNegative = 0.0
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    mu_dtype: Dtype = "float32"

    @pydantic.model_validator(mode="after")
    def _matrices(self):
        if self.matrix_learning_rate is not None and self.algorithm != "muon":
            raise ValueError(f"matrix_learning_rate is of algorithm muon, this is {self.algorithm}; leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _decays(self):
        if self.mu_dtype == "bfloat16" and self.beta1 > SLOWEST_IN_BFLOAT16:
            raise ValueError(f"mu_dtype bfloat16 cannot hold a moment of beta1 {self.beta1:g}; set mu_dtype: float32")
        return self


class Guard(Section):
    """What to do at a step whose gradient is not finite, or whose gradient norm exceeds `spike_factor` times its running mean.

    In both cases the model is not changed. `stop` ends the run, with the batch saved for replay; `skip` continues and counts
    the step. The running mean is over about 1 / (1 - `decay`) steps; before that many steps no spike is detected.
    """

    not_finite: Literal["stop", "skip"] = "stop"
    spike: Literal["ignore", "stop", "skip"] = "ignore"
    spike_factor: AboveOne = 10.0
    decay: Annotated[BelowOne, Field(gt=0)] = 0.98
