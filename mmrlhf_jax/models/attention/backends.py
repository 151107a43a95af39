"""Chooses the implementation of an attention, and how the kernel is sharded over a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Literal, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.attention import pallas_gpu, pallas_tpu, xla
from mmrlhf_jax.models.attention.banded import banded_attention
from mmrlhf_jax.models.attention.visibility import segment_starts
from mmrlhf_jax.sharding.rules import RULES, axes_in, fit
from mmrlhf_jax.sharding.rules import platform as _platform

# `auto`: the Pallas kernels on TPU and on GPU, XLA elsewhere. `pallas` is interpreted on other platforms, which is slow and for
# tests.
Backend = Literal["auto", "xla", "pallas"]

KERNELS = {"tpu": pallas_tpu.attend, "gpu": pallas_gpu.attend}
INTERPRETED = pallas_tpu.attend

# Logical axes of rows and heads: of a batch's rows, and of images that are rows of their own.
ROWS, IMAGES = ("batch", "act_heads"), ("tiles", "heads")


class Products(NamedTuple):
    """`count` matrix products per pair of a query and a key, over all pairs of the blocks that a kernel visits."""

    count: int
    queries: int  # slots of a block of queries
    keys: int  # slots of a block of keys


def attend_segments(q, k, v, until, *, backend: Backend):
    """Differentiable attention inside segments of consecutive slots, whose ends are `until`; sharded as `attend` is."""
    platform = _platform()
    if not q.size or not uses_kernel(backend, platform, q.shape[3]):
        return xla.attend_segments(q, k, v, until)
    found = _by_kernel(q, k, v, until, segment_starts(until), causal=False, places=ROWS, platform=platform)
    if found is not None:
        return found
    if backend == "auto":
        return xla.attend_segments(q, k, v, until)
    raise _cannot_share(q, k)


def attend_windows(q, k, v, until, band: int, *, backend: Backend):
    """As `attend_segments`, of segments of at most `band` slots, which divides the number of slots.

    The blocks of the kernels for GPUs are about as long as a band, and keep scores in registers; those for TPUs are so long
    that XLA's bands compute less.
    """
    if windows_by_kernel(backend, _platform(), q.shape[3]):
        return attend_segments(q, k, v, until, backend=backend)
    return banded_attention(q, k, v, until, band)


def windows_by_kernel(backend: Backend, platform: str, dim: int) -> bool:
    """Whether short segments of heads of size `dim` are computed by a kernel as well."""
    return platform == "gpu" and uses_kernel(backend, platform, dim)


def attend(q, k, v, visible_until, *, causal: bool, backend: Backend):
    """Differentiable attention. Under a mesh the kernel runs on every device's rows (data, fsdp) and heads (tensor, context).

    A row's slots are not sharded here: `context` shards the heads if it divides the key/value heads, else its devices compute
    the same heads. Images (not `causal`) are sharded like tiles. If rows or heads do not divide, `auto` uses XLA, which
    partitions its own operations, and `pallas` raises UserError.
    """
    platform = _platform()
    if not q.size or not uses_kernel(backend, platform, q.shape[3]):  # a batch of text has no tiles
        return xla.attend(q, k, v, visible_until, causal=causal)
    found = _by_kernel(q, k, v, visible_until, causal=causal, places=ROWS if causal else IMAGES, platform=platform)
    if found is not None:
        return found
    if backend == "auto":
        return xla.attend(q, k, v, visible_until, causal=causal)
    raise _cannot_share(q, k)


def _by_kernel(q, k, v, *masks, causal: bool, places: tuple[str, str], platform: str):
    """The kernel's result; None if the mesh does not divide the rows or heads. `masks` are per row and slot."""
    kernel = partial(KERNELS.get(platform, INTERPRETED), causal, platform not in KERNELS)
    mesh = jax.sharding.get_abstract_mesh()
    free = [name for name in mesh.axis_names if name not in mesh.manual_axes]
    if prod(mesh.shape[name] for name in free) == 1:
        return kernel(q, k, v, *masks)
    split = kernel_split(k.shape, mesh, free, places=places)
    if split is None:
        return None
    batch, heads = split
    by_head = PartitionSpec(batch, None, heads, None)
    shared = jax.shard_map(
        kernel,
        in_specs=(by_head, by_head, by_head, *(PartitionSpec(batch, None) for _ in masks)),
        out_specs=by_head,
        axis_names=set(free),
        check_vma=False,  # the kernels' outputs do not declare over which mesh axes they vary
    )
    return shared(q, k, v, *masks)


def _cannot_share(q, k) -> UserError:
    return UserError(
        f"model.attention: pallas cannot share {q.shape[0]} rows and {k.shape[2]} key/value heads over the mesh "
        f"{dict(jax.sharding.get_abstract_mesh().shape)}: it needs rows that data x fsdp divides and heads that tensor divides"
    )


def uses_kernel(backend: Backend, platform: str, dim: int) -> bool:
    """Whether attention with heads of size `dim` is computed by a kernel. UserError if `pallas` asks for one that cannot be."""
    if backend == "xla" or (backend == "auto" and platform not in KERNELS):
        return False
    obstacle = pallas_gpu.obstacle(dim) if platform == "gpu" else None
    if obstacle is not None and backend == "pallas":
        raise UserError(f"model.attention: pallas {obstacle}; take auto or xla")
    return obstacle is None


def kernel_products(
    platform: str, length: int, group: int, dim: int, dtype: str, *, causal: bool
) -> tuple[list[Products], list[Products]]:
    """(forward pass, backward pass): the matrix products of the kernels for rows of `length` slots, whose key/value heads of
    size `dim` are each shared by `group` query heads."""
    if platform != "gpu":
        block = pallas_tpu.block_size(length, group, causal)
        return [Products(2, block, block)], [Products(7, block, block)]
    counted = zip((2, 3, 4), pallas_gpu.kernel_blocks(length, dim, dtype), strict=True)
    forward, *backward = (Products(count, block.queries, block.keys) for count, block in counted)
    return [forward], backward


def kernel_split(
    keys: tuple[int, int, int, int], mesh: Mesh | AbstractMesh, free: Sequence[str], *, places: tuple[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(mesh axes that shard the rows, mesh axes that shard the heads) of keys [B, S, K, D], out of the axes `free` (not
    manual), by the logical axes `places` of both; None if they do not divide."""
    batch, heads = (tuple(name for name in RULES[axis] if name in free) for axis in places)
    split = fit(PartitionSpec(batch, None, heads, None), keys, mesh, droppable=("context",))
    batch, heads = axes_in(split[0]), axes_in(split[2])
    rows, _, kv_heads, _ = keys
    divides = not rows % prod(mesh.shape[name] for name in batch) and not kv_heads % prod(mesh.shape[name] for name in heads)
    return (batch, heads) if divides else None
