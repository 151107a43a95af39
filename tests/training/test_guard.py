"""A bad step leaves the model and the optimizer as they are, whatever it is called: skipped or stopped at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmrlhf_jax import config
from mmrlhf_jax.training.guard import GOOD, NOT_FINITE, SPIKE, guarded, stops

PARAMS = {"w": jnp.ones(3)}


def run(settings: config.Guard, grads: list[float], losses: list[float] | None = None):
    """Parameters, optimizer state and status after each step of Adam under gradients of these values."""
    tx = guarded(optax.adam(0.1), settings)
    update = jax.jit(lambda g, state, params, loss: tx.update(g, state, params, value=loss))
    params, state, found = PARAMS, tx.init(PARAMS), []
    for grad, loss in zip(grads, losses or [1.0] * len(grads), strict=True):
        updates, state = update({"w": jnp.full(3, grad)}, state, params, jnp.float32(loss))
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


@pytest.mark.parametrize(("grads", "losses"), [([1, np.nan, 1], None), ([1, np.inf, 1], None), ([1, 1, 1], [1, np.nan, 1])])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(grads, losses):
    steps = run(config.Guard(not_finite="skip"), grads, losses)
    without = run(config.Guard(), [1, 1])
    assert [int(state.status) for _, state in steps] == [GOOD, NOT_FINITE, GOOD]
    assert int(steps[-1][1].skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, steps[1][0], steps[0][0])
    jax.tree.map(np.testing.assert_array_equal, steps[2][0], without[1][0])
    jax.tree.map(np.testing.assert_array_equal, steps[2][1].inner, without[1][1].inner)


@pytest.mark.long
def test_a_spike_is_a_norm_far_above_the_running_mean_once_there_is_one():
    settings = config.Guard(spike="skip", spike_factor=3.0, decay=0.75)  # a mean over about four steps
    early = [int(state.status) for _, state in run(settings, [1, 1, 9])]
    assert early == [GOOD] * 3
    statuses = [int(state.status) for _, state in run(settings, [1, 1, 1, 1, 9, 2.9, 1])]
    assert statuses == [GOOD] * 4 + [SPIKE, GOOD, GOOD]
    assert [int(state.status) for _, state in run(settings.model_copy(update={"spike": "ignore"}), [1, 1, 1, 1, 9])][-1] == GOOD


def test_a_run_stops_where_the_experiment_says_so():
    assert "not finite" in stops(NOT_FINITE, config.Guard())
    assert stops(NOT_FINITE, config.Guard(not_finite="skip")) is None
    assert "10 times its running mean" in stops(SPIKE, config.Guard(spike="stop"))
    assert stops(SPIKE, config.Guard(spike="skip")) is None and stops(GOOD, config.Guard()) is None
