"""Makes a differentiable attention of a kernel's forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float, Int


def differentiable(forward: Callable, backward: Callable) -> Callable:
    """`attend(causal, interpret, q, k, v, visible_until, since=None)`, whose gradients are those that `backward` computes.

    `forward(q, k, v, visible_until, since)` gives the output and the row statistics that `backward(q, k, v, visible_until,
    since, output, statistics, cotangent)` needs for the gradients of q, k and v. Both take `causal` and `interpret` by name.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def attend(
        causal: bool,
        interpret: bool,
        q: Float[Array, "B S H D"],
        k: Float[Array, "B S K D"],
        v: Float[Array, "B S K D"],
        visible_until: Int[Array, "B S"],
        since: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S H D"]:
        """Attention with the mask `visible_until`; without `causal`, later keys are visible as well. `since`: a key is
        visible only to queries from there on."""
        return attend_forward(causal, interpret, q, k, v, visible_until, since)[0]

    def attend_forward(causal, interpret, q, k, v, visible_until, since):
        out, statistics = forward(q, k, v, visible_until, since, causal=causal, interpret=interpret)
        return out, (q, k, v, visible_until, since, out, statistics)

    def attend_backward(causal, interpret, kept, cotangent):
        return *backward(*kept, cotangent, causal=causal, interpret=interpret), None, None

    attend.defvjp(attend_forward, attend_backward)
    return attend
