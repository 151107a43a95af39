"""Chooses the implementation of an attention, and how the kernel is sharded over a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Literal

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.attention import pallas_tpu, xla
from mmrlhf_jax.sharding.rules import RULES, axes_in, fit

# `auto`: the Pallas kernel on TPU, XLA elsewhere. `pallas` runs interpreted on other platforms, which is slow and for tests.
Backend = Literal["auto", "xla", "pallas"]


def attend(q, k, v, visible_until, *, causal: bool, backend: Backend):
    """Differentiable attention. Under a mesh the kernel runs on every device's rows (data, fsdp) and heads (tensor, context).

    A row's slots are not sharded here: `context` shards the heads if it divides the key/value heads, else its devices compute
    the same heads. Images (not `causal`) are sharded like tiles. If rows or heads do not divide, `auto` uses XLA, which
    partitions its own operations, and `pallas` raises UserError.
    """
    platform = _platform()
    if not uses_kernel(backend, platform):
        return xla.attend(q, k, v, visible_until, causal=causal)
    kernel = partial(pallas_tpu.attend, causal, platform != "tpu")
    mesh = jax.sharding.get_abstract_mesh()
    free = [name for name in mesh.axis_names if name not in mesh.manual_axes]
    if prod(mesh.shape[name] for name in free) == 1:
        return kernel(q, k, v, visible_until)
    split = kernel_split(k.shape, mesh, free, causal=causal)
    if split is None:
        if backend == "auto":
            return xla.attend(q, k, v, visible_until, causal=causal)
        raise UserError(
            f"model.attention: pallas cannot share {q.shape[0]} rows and {k.shape[2]} key/value heads over the mesh "
            f"{dict(mesh.shape)}: it needs rows that data x fsdp divides and heads that tensor divides"
        )
    batch, heads = split
    by_head = PartitionSpec(batch, None, heads, None)
    shared = jax.shard_map(
        kernel,
        in_specs=(by_head, by_head, by_head, PartitionSpec(batch, None)),
        out_specs=by_head,
        axis_names=set(free),
        check_vma=False,  # the kernels' outputs do not declare over which mesh axes they vary
    )
    return shared(q, k, v, visible_until)


def uses_kernel(backend: Backend, platform: str) -> bool:
    return backend == "pallas" or (backend == "auto" and platform == "tpu")


def kernel_split(
    keys: tuple[int, int, int, int], mesh: Mesh | AbstractMesh, free: Sequence[str], *, causal: bool
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(mesh axes that shard the rows, mesh axes that shard the heads) of keys [B, S, K, D], out of the axes `free` (not
    manual); None if they do not divide."""
    places = ("batch", "act_heads") if causal else ("tiles", "heads")
    batch, heads = (tuple(name for name in RULES[axis] if name in free) for axis in places)
    split = fit(PartitionSpec(batch, None, heads, None), keys, mesh, droppable=("context",))
    batch, heads = axes_in(split[0]), axes_in(split[2])
    rows, _, kv_heads, _ = keys
    divides = not rows % prod(mesh.shape[name] for name in batch) and not kv_heads % prod(mesh.shape[name] for name in heads)
    return (batch, heads) if divides else None


def _platform() -> str:
    """The platform of the devices that the program is compiled for: those of the mesh, which need not be present."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
