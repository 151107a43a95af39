"""Score heads on the hidden state of a conversation's last token. Reference: MM-RLHF `llava_qwen.py` (`RewardHead`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmrlhf_jax.models.layers import linear, matmul_precision
from mmrlhf_jax.models.lora import AdaptableLinear
from mmrlhf_jax.sharding import ring

# tanh: the released code's Linear-tanh-Linear; silu: BaseReward's two-layer head; linear: a single projection.
VARIANTS = ("tanh", "silu", "linear")


class FewRowsLinear(AdaptableLinear):
    """A linear layer for few rows, whose kernel gradient is reduce-scattered by `sharding.ring`; XLA would use an all-reduce
    for a product with so few rows."""

    def product(self, x: Float[Array, "B ... I"]) -> Float[Array, "B ... O"]:
        kernel = self.kernel[...].astype(x.dtype)
        return ring.multiply(x, kernel, self.kernel.get_metadata().get("out_sharding") or (None, None))


class RewardHead(nnx.Module):
    """Computes in float32 whatever the model's dtype, because scores of good responses differ by less than bfloat16
    resolves."""

    def __init__(self, hidden_size: int, variant: str, *, param_dtype, rngs: nnx.Rngs):
        kinds = dict(bias=True, dtype=jnp.float32, param_dtype=param_dtype, rngs=rngs)
        self.variant = variant
        if variant != "linear":
            self.dense = linear(hidden_size, hidden_size, ("embed", None), kind=FewRowsLinear, **kinds)
        self.out = linear(hidden_size, 1, ("embed", None), **kinds)

    def __call__(self, hidden: Float[Array, "... E"]) -> Float[Array, ...]:
        """Scalar rewards in float32."""
        with matmul_precision(jnp.float32):
            if self.variant == "tanh":
                hidden = jnp.tanh(self.dense(hidden))
            elif self.variant == "silu":
                hidden = jax.nn.silu(self.dense(hidden))
            return self.out(hidden)[..., 0]
