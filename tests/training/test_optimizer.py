"""Which update a parameter gets, and where the optimizer's state lies."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mmrlhf_jax import config
from mmrlhf_jax.models.llava_onevision import FAMILY
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.training.optimizer import decays, learning_rate_at, learning_rate_schedule, make_optimizer
from mmrlhf_jax.training.state import init_state
from tests import tiny
from tests.families import FAMILIES


def parameters(mesh) -> nnx.State:
    def param(shape, *axes):
        value = jax.random.normal(jax.random.key(len(shape)), shape)
        return nnx.Param(jax.device_put(value, NamedSharding(mesh, PartitionSpec(*axes))))

    kernel = {"kernel": param((2, 6, 4), None, "fsdp"), "bias": param((2, 4))}
    return nnx.State({"language": {"layers": {"q": kernel}, "embedding": {"embedding": param((8, 6))}}})


@pytest.mark.long
def test_muon_orthogonalises_every_layer_of_a_stack_and_leaves_the_rest_to_adam():
    """Against SVD: the update of a kernel is 0.2 sqrt(max(in, out)) U V^T of its gradient, each layer for itself."""
    mesh = make_mesh({"fsdp": -1})
    settings = config.Optimizer(algorithm="muon", learning_rate=1e-3, matrix_learning_rate=0.02, warmup_ratio=0)
    params = parameters(mesh)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    updates = {}
    for algorithm in ("muon", "adamw"):
        tx = make_optimizer(settings.model_copy(update={"algorithm": algorithm}), 10, FAMILY.parts)
        updates[algorithm], _ = tx.update(grads, tx.init(params), params, value=jnp.float32(1))
    muon, adamw = (
        {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(updates[a])} for a in updates
    )
    for path, update in muon.items():
        if "kernel" not in path:
            np.testing.assert_array_equal(update, adamw[path])
            continue
        gradient = np.asarray(grads["language"]["layers"]["q"]["kernel"][...], np.float64)
        for layer in range(2):
            u, _, vt = np.linalg.svd(gradient[layer], full_matrices=False)
            exact = -0.02 * 0.2 * 6**0.5 * u @ vt
            # Five Newton-Schulz steps bring singular values near 1, not to it: the direction is what is exact.
            cosine = (update[layer] * exact).sum() / np.linalg.norm(update[layer]) / np.linalg.norm(exact)
            assert cosine > 0.97
            assert 0.6 < np.linalg.norm(update[layer]) / np.linalg.norm(exact) < 1.3


def test_moments_lie_where_their_parameters_lie_under_both_algorithms():
    mesh = make_mesh({"fsdp": -1})
    params = parameters(mesh)
    for algorithm in ("adamw", "muon"):
        tx = make_optimizer(config.Optimizer(algorithm=algorithm), 10, FAMILY.parts)
        state = init_state(params, nnx.State({}), tx, mesh)
        moments = [x for p, x in jax.tree_util.tree_leaves_with_path(state.opt_state) if "kernel" in jax.tree_util.keystr(p)]
        assert len(moments) == (2 if algorithm == "adamw" else 1)
        assert all(x.sharding.spec == PartitionSpec(None, "fsdp") for x in moments)
        assert optax.tree.norm(moments) == 0


@pytest.mark.long
def test_a_part_with_its_own_rate_follows_the_same_schedule_under_its_own_peak():
    mesh = make_mesh({"fsdp": -1})
    whole = parameters(mesh)
    params = nnx.State({"language": whole["language"], "projector": whole["language"]})
    grads = jax.tree.map(jnp.ones_like, params)
    for step_number in (1, 3):
        updates = []
        for rates in ({}, {"projector": 4e-5}):
            tx = make_optimizer(config.Optimizer(learning_rate=1e-5, part_rates=rates, warmup_ratio=0.2), 10, FAMILY.parts)
            state = tx.init(params)
            for _ in range(step_number):
                update, state = tx.update(grads, state, params, value=jnp.float32(1))
            updates.append(update)
        jax.tree.map(np.testing.assert_array_equal, updates[0]["language"], updates[1]["language"])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(4 * a, b, rtol=1e-6), updates[0]["projector"], updates[1]["projector"]
        )


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (0.0, 7), (0.1, 10), (0.3, 50), (0.03, 12345), (0.9, 10)])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_the_rate_that_the_host_knows_is_the_one_that_the_step_applies(schedule, warmup, steps, final):
    settings = config.Optimizer(learning_rate=3e-6, warmup_ratio=warmup, schedule=schedule, final_fraction=final)
    applied = learning_rate_schedule(settings, steps)
    asked = sorted({step for step in (0, 1, 2, steps // 3, steps // 2, steps - 1, steps, steps + 5) if step >= 0})
    found = [learning_rate_at(settings, steps, step) for step in asked]
    np.testing.assert_allclose(found, [float(applied(step)) for step in asked], rtol=1e-5, atol=1e-7 * 3e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_matrices_and_embeddings_decay(tmp_path, family):
    """Of every family: not the biases, scales and single vectors, whose stored tensors have one dimension or would have."""
    raw = FAMILIES[family].config()
    model = tiny.on_one_device(FAMILIES[family].checkpoint(tmp_path, raw, reward_head=True))
    decayed = decays(nnx.state(model))
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        axes = [size for size in variable.shape[1 if "layers" in path else 0 :] if size > 1 or path[0] == "reward_head"]
        found = functools.reduce(lambda tree, key: tree[key], path, decayed)
        assert bool(getattr(found, "value", found)) == (len(axes) > 1), path
