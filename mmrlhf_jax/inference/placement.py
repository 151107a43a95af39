"""Where a model generates: whole on every device of this host if it fits, else split over as few devices as hold it.

Each host generates on its own devices. Weights are never gathered for a token: `tensor` splits every product, and `data` copies
the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh

# The share of a device's memory that weights may take, so that as much is left for keys and for prefilling.
WEIGHTS_SHARE = 0.6
# The share of what weights leave that caches may take; the rest is for the programs' temporary arrays.
CACHE_SHARE = 0.6


def weight_bytes(config: ModelConfig, dtype, device: jax.Device) -> int:
    """Bytes of a model's weights in this dtype; a reward head's are kept in float32."""
    with use_mesh(make_mesh({}, [device])):
        model = nnx.eval_shape(lambda: family_of(config).model()(config, rngs=nnx.Rngs(0)))
    sizes = {path: math.prod(variable.shape) for path, variable in nnx.to_flat_state(nnx.state(model))}
    wide = sum(size for path, size in sizes.items() if path[0] == "reward_head")
    return (sum(sizes.values()) - wide) * jnp.dtype(dtype).itemsize + 4 * wide


def device_memory(device: jax.Device) -> int | None:
    """Bytes that arrays may take on a device; None where the platform does not say (CPUs)."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def generation_mesh(config: ModelConfig, dtype, devices: Sequence[jax.Device], memory: int | None) -> Mesh:
    """A mesh over `devices`, of which each has `memory` bytes (None: enough). `tensor` is the smallest power of two with which
    the weights fit, or all devices if none is large enough."""
    tensor = 1
    if memory is not None:
        needed = weight_bytes(config, dtype, devices[0]) / (WEIGHTS_SHARE * memory)
        while tensor < needed and len(devices) % (2 * tensor) == 0:
            tensor *= 2
    return make_mesh({"data": -1, "tensor": tensor}, list(devices))


def cache_room(config: ModelConfig, dtype, mesh: Mesh, memory: int | None) -> int | None:
    """Bytes that one copy of the model has for its caches, on all devices of its `tensor` axis together; None: no limit."""
    if memory is None:
        return None
    tensor = mesh.shape["tensor"]
    return int(CACHE_SHARE * max(0, tensor * memory - weight_bytes(config, dtype, mesh.devices.flat[0])))
