"""Building blocks of vision towers, language models and heads: linear layers, norms, stacked layers and the scan over them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from mmrlhf_jax.models.lora import AdaptableLinear
from mmrlhf_jax.models.parameters import VECTOR, for_norm
from mmrlhf_jax.sharding.rules import partitioned

Layer = TypeVar("Layer", bound=nnx.Module)

ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}

# Rematerialisation: which values of a layer are saved for the backward pass. "full" saves only the layer's input.
REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def matmul_precision(dtype):
    """A context in which float32 matrices are multiplied in full precision; by default GPUs and TPUs use fewer bits."""
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
    """A layer y = x @ kernel[inputs, outputs] (+ bias); `axes` are the kernel's logical axes, the last one also the bias's."""
    return kind(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=partitioned(nnx.initializers.lecun_normal(), *axes),
        bias_init=partitioned(nnx.initializers.zeros_init(), axes[1]),
        bias_metadata=VECTOR,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def layer_norm(features: int, eps: float, *, dtype, param_dtype, rngs) -> nnx.LayerNorm:
    """A LayerNorm whose variance is computed as in transformers."""
    # The fast variance E[x^2] - E[x]^2 loses precision by cancellation; transformers computes the exact form.
    return nnx.LayerNorm(
        features,
        epsilon=eps,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=param_dtype,
        promote_dtype=for_norm,
        bias_metadata=VECTOR,
        scale_metadata=VECTOR,
        rngs=rngs,
    )


def rms_norm(features: int, eps: float, *, dtype, param_dtype, rngs) -> nnx.RMSNorm:
    kinds = dict(dtype=dtype, param_dtype=param_dtype, promote_dtype=for_norm, scale_metadata=VECTOR)
    return nnx.RMSNorm(features, epsilon=eps, rngs=rngs, **kinds)


NORMS = {"layer_norm": layer_norm, "rms_norm": rms_norm}


def stack(make: Callable[[nnx.Rngs], Layer], count: int, rngs: nnx.Rngs) -> Layer:
    """`count` layers as one module whose parameters have a leading layer axis; compile time does not grow with `count`."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: None})
    def stacked(rngs: nnx.Rngs) -> Layer:
        return make(rngs)

    return stacked(rngs)


def run_stack(body: Callable, x, layers, *, remat: str):
    """Scan `body(layer, x) -> (x, out)` over stacked layers. `layers` may be any pytree with a leading layer axis."""
    policy = REMAT_POLICIES[remat]
    if remat != "none":
        # prevent_cse is needed only outside of a scan; the loop already separates forward and backward pass.
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    return jax.lax.scan(lambda x, layer: body(layer, x), x, layers)
