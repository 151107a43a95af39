"""The building blocks that SigLIP, Qwen2 and the heads share: a linear layer, stacked layers and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrlhf_jax.models.lora import AdaptableLinear
from mmrlhf_jax.sharding.rules import partitioned

Layer = TypeVar("Layer", bound=nnx.Module)

# What a backward pass keeps of a layer. "full" keeps only the layer's input.
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def matmul_precision(dtype):
    """A context in which float32 means float32: without it, GPUs and TPUs multiply float32 matrices in fewer bits."""
    return jax.default_matmul_precision("highest" if jnp.dtype(dtype) == jnp.float32 else "default")


def linear(
    inputs: int,
    outputs: int,
    axes: tuple[str | None, str | None],
    *,
    bias: bool,
    dtype,
    param_dtype,
    rngs,
    kind: type[AdaptableLinear] = AdaptableLinear,
) -> AdaptableLinear:
    """y = x @ kernel[inputs, outputs] (+ bias), with logical axes for both."""
    return kind(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=partitioned(nnx.initializers.lecun_normal(), *axes),
        bias_init=partitioned(nnx.initializers.zeros_init(), axes[1]),
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def stack(make: Callable[[nnx.Rngs], Layer], count: int, rngs: nnx.Rngs) -> Layer:
    """`count` layers as one module whose parameters have a leading layer axis: compile time does not grow with depth."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: None})
    def stacked(rngs: nnx.Rngs) -> Layer:
        return make(rngs)

    return stacked(rngs)


def run_stack(body: Callable, x, layers, *, remat: str):
    """Scan `body(layer, x) -> (x, out)` over stacked layers. `layers` may be any pytree with a leading layer axis."""
    policy = REMAT_POLICIES[remat]
    if remat != "none":
        # prevent_cse is for code outside a scan; inside, the loop already keeps the forward and backward pass apart.
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(lambda x, layer: body(layer, x), x, layers)
