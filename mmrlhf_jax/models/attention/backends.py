"""Which implementation computes an attention, on which devices' share of it, and its derivative.

The choice by platform is made while lowering, so a program compiled for a TPU on a host without one gets the TPU's kernel.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Literal

import jax
from jax.sharding import PartitionSpec

from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.attention import pallas_tpu, xla
from mmrlhf_jax.sharding.rules import RULES

# `auto`: the Pallas kernel on TPU, XLA elsewhere. `pallas` off TPU runs interpreted: slow, for tests.
Backend = Literal["auto", "xla", "pallas"]


def attend(q, k, v, visible_until, *, causal: bool, backend: Backend):
    """Differentiable attention; under a mesh every device takes its rows (data, fsdp) and heads (tensor).

    Where that is not possible, because rows or heads do not divide or slots are sharded (`context`), `auto` leaves it to
    XLA, which partitions its own operations, and `pallas` raises UserError.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = [name for name in mesh.axis_names if name not in mesh.manual_axes]
    if prod(mesh.shape[name] for name in free) == 1:
        return _attend(causal, backend, q, k, v, visible_until)
    batch, heads, slots = (tuple(name for name in RULES[axis] if name in free) for axis in ("batch", "act_heads", "slots"))
    shares = {axes: prod(mesh.shape[name] for name in axes) for axes in (batch, heads, slots)}
    if q.shape[0] % shares[batch] or k.shape[2] % shares[heads] or shares[slots] > 1:
        if backend == "pallas":
            raise UserError(
                f"model.attention: pallas cannot share {q.shape[0]} rows and {k.shape[2]} key/value heads over the mesh "
                f"{dict(mesh.shape)}: it needs rows that data x fsdp divides, heads that tensor divides, and context 1"
            )
        return _attend(causal, "xla", q, k, v, visible_until)
    by_head = PartitionSpec(batch, None, heads, None)
    shared = jax.shard_map(
        partial(_attend, causal, backend),
        in_specs=(by_head, by_head, by_head, PartitionSpec(batch, None)),
        out_specs=by_head,
        axis_names=set(free),
        check_vma=False,  # the kernels' outputs do not say over which axes they vary
    )
    return shared(q, k, v, visible_until)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(causal: bool, backend: Backend, q, k, v, visible_until):
    return _forward(causal, backend, q, k, v, visible_until)[0]


def _attend_forward(causal, backend, q, k, v, visible_until):
    out, lse = _forward(causal, backend, q, k, v, visible_until)
    return out, (q, k, v, visible_until, out, lse)


def _attend_backward(causal, backend, kept, cotangent):
    return *_choose(backend, "backward", causal)(*kept, cotangent), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(causal, backend, *args):
    return _choose(backend, "forward", causal)(*args)


def _choose(backend: Backend, direction: str, causal: bool):
    by_xla = partial(getattr(xla, direction), causal=causal)
    kernel = partial(getattr(pallas_tpu, direction), causal=causal)
    if backend == "xla":
        return by_xla
    elsewhere = by_xla if backend == "auto" else partial(kernel, interpret=True)
    return lambda *args: jax.lax.platform_dependent(*args, tpu=kernel, default=elsewhere)
