"""LoRA (arXiv 2106.09685) on the linear layers of any part: y = x W + b + (alpha / rank) · (x A) B, with random A and zero B.

The adapters are parameters beside their kernel, so all other parameters keep their paths in checkpoints. Layout and
initialisation are PEFT's (`tuners/lora/layer.py`). There is no dropout, with which a step on shared prefixes would not equal
the pair-expanded one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mmrlhf_jax.models import parameters
from mmrlhf_jax.models.weight_names import Path

ADAPTERS = ("lora_a", "lora_b")


class AdaptableLinear(nnx.Linear):
    """`nnx.Linear` whose parameters are all-gathered for each use.

    It may have adapters `lora_a: [..., inputs, rank]` and `lora_b: [..., rank, outputs]`. Gradients of its matrices are summed
    in `reduce_dtype`.
    """

    reduce_dtype = "float32"
    takes_adapters = True

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        x = x.astype(self.dtype)
        y = self.product(x)
        if self.bias is not None:
            y = (y + parameters.used(self.bias, y.dtype)).astype(y.dtype)
        if not self.adapted:
            return y
        return y + self.adapter_product(self.adapter_product(x, self.lora_a), self.lora_b) * jnp.asarray(
            self.lora_scale, y.dtype
        )

    @property
    def adapted(self) -> bool:
        return hasattr(self, "lora_a")

    def product(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        return parameters.product(x, self.kernel, self.reduce_dtype)

    def adapter_product(self, x: Float[Array, "... I"], adapter: nnx.Param) -> Float[Array, "... O"]:
        return parameters.product(x, adapter, self.reduce_dtype)

    def add_adapters(self, a: nnx.Param, b: nnx.Param, scale: float) -> None:
        self.lora_a, self.lora_b, self.lora_scale = a, b, scale


class PatchEmbedding(AdaptableLinear):
    """The linear layer of a tower's patches, which takes no adapters: in Hugging Face's models it is a convolution, for which
    PEFT's adapters have another layout."""

    takes_adapters = False


def is_adapter(path: Path) -> bool:
    """Whether the parameter at this path belongs to an adapter."""
    return path[-1] in ADAPTERS


def adapted_layers(model: nnx.Module) -> Iterator[tuple[Path, AdaptableLinear]]:
    """Iterate over (path, layer) of the model's layers that have adapters."""
    return ((path, layer) for path, layer in _linear_layers(model) if layer.adapted)


def add_lora(
    model: nnx.Module,
    chosen: Callable[[Path], bool],
    *,
    rank: int,
    alpha: float,
    dtype=jnp.float32,
    seed: int = 0,
) -> list[Path]:
    """Add adapters to the model's linear layers whose path is `chosen`; returns these paths. The model is changed in place.

    A is uniform in ±1/√inputs (PEFT's Kaiming initialisation), drawn from `seed` and the layer's path, so that it is the same
    on every host and mesh. B is zero, so that the model's outputs do not change. Adapters are sharded like the kernel's axes.
    """
    paths = []
    for path, layer in _linear_layers(model):
        if not layer.takes_adapters or not chosen(path):
            continue
        kernel = layer.kernel
        *stack, inputs, outputs = kernel.shape
        rng = np.random.default_rng([seed, zlib.crc32(".".join(path).encode())])
        bound = inputs**-0.5
        a = rng.uniform(-bound, bound, (*stack, inputs, rank)).astype(dtype)
        b = np.zeros((*stack, rank, outputs), dtype)
        whole = (None,) * kernel.ndim
        logical = tuple(kernel.get_metadata().get("out_sharding") or whole)
        layer.add_adapters(
            _param(a, kernel, (*logical[:-1], None), lambda spec: (*spec[:-1], None)),
            _param(b, kernel, (*logical[:-2], None, logical[-1]), lambda spec: (*spec[:-2], None, spec[-1])),
            alpha / rank,
        )
        paths.append(path)
    return paths


def with_reduce_dtype(model: nnx.Module, dtype: str) -> nnx.Module:
    """`model`, changed to sum the gradients of its matrices in `dtype`, or in the compute dtype if that is wider."""
    for _, layer in _linear_layers(model):
        layer.reduce_dtype = dtype
    return model


def merge_lora(model: nnx.Module) -> nnx.Module:
    """An equivalent model without adapters: every adapted kernel becomes W + (alpha / rank) · A B. `model` is not changed.

    These kernels are float32, whatever the dtype of W, because bfloat16 could round the update away.
    """
    merged = nnx.clone(model)
    for _, layer in list(adapted_layers(merged)):
        kernel, a, b = (p[...].astype(jnp.float32) for p in (layer.kernel, layer.lora_a, layer.lora_b))
        with jax.default_matmul_precision("highest"):
            kernel = kernel + layer.lora_scale * (a @ b)
        layer.kernel = layer.kernel.replace(kernel)
        del layer.lora_a, layer.lora_b, layer.lora_scale
    return merged


def _linear_layers(model: nnx.Module) -> Iterator[tuple[Path, AdaptableLinear]]:
    return ((path, module) for path, module in nnx.iter_modules(model) if isinstance(module, AdaptableLinear))


def _param(values: np.ndarray, kernel: nnx.Param, logical: tuple, place: Callable) -> nnx.Param:
    """A parameter on the kernel's devices; abstract if the kernel is abstract (in a model that is only planned)."""
    value = kernel.get_value()
    if isinstance(value, jax.ShapeDtypeStruct):
        return kernel.replace(jax.ShapeDtypeStruct(values.shape, values.dtype), out_sharding=logical)
    sharding = value.sharding
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *(None,) * (value.ndim - len(sharding.spec)))
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*place(spec)))
    array = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    return kernel.replace(array, out_sharding=logical)
