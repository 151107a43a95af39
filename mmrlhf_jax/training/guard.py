"""The guard against bad steps: a gradient that is not finite, or whose norm spikes, leaves the model unchanged."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmrlhf_jax import config

# Values of `GuardState.status`, about the last step.
GOOD, NOT_FINITE, SPIKE = 0, 1, 2


class GuardState(NamedTuple):
    """The optimizer's state and running statistics of the gradient norm. All of it is checkpointed, so resuming is exact."""

    inner: optax.OptState
    norms: jax.Array  # float32[]: exponential moving average of good steps' norms, without bias correction
    seen: jax.Array  # int32[]: good steps
    skipped: jax.Array  # int32[]: bad steps, whose update was not applied
    status: jax.Array  # int32[]: GOOD, NOT_FINITE or SPIKE


def guarded(inner: optax.GradientTransformation, settings: config.Guard) -> optax.GradientTransformationExtraArgs:
    """`inner`, except that a bad step changes neither parameters nor state. `update` takes the loss as `value`."""

    def init(params) -> GuardState:
        zero = jnp.zeros((), jnp.int32)
        return GuardState(inner.init(params), jnp.zeros((), jnp.float32), zero, zero, zero)

    def update(grads, state: GuardState, params=None, *, value: jax.Array, **_):
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(value)
        mean = state.norms / (1 - settings.decay ** jnp.maximum(state.seen, 1).astype(jnp.float32))
        known = state.seen >= round(1 / (1 - settings.decay))
        spike = finite & known & (norm > settings.spike_factor * mean) & (settings.spike != "ignore")
        good = finite & ~spike

        updates, inner_state = inner.update(grads, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(good, u, 0), updates)
        inner_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), inner_state, state.inner)
        norms = settings.decay * state.norms + (1 - settings.decay) * norm
        return updates, GuardState(
            inner=inner_state,
            norms=jnp.where(good, norms, state.norms),
            seen=state.seen + good,
            skipped=state.skipped + ~good,
            status=jnp.where(finite, jnp.where(spike, SPIKE, GOOD), NOT_FINITE).astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def stops(status: int, settings: config.Guard) -> str | None:
    """The reason to stop at a step of this `status`, in words; None if the experiment's guard does not stop there."""
    if status == NOT_FINITE and settings.not_finite == "stop":
        return "the loss or its gradient is not finite"
    if status == SPIKE and settings.spike == "stop":
        return f"the gradient's norm is more than {settings.spike_factor:g} times its running mean"
    return None
