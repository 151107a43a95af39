"""What banded windows cost: FLOPs of the compiled program of a layer of the published tower, against windows that are exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax.models.attention import full_attention, window_attention
from mmrlhf_jax.models.qwen2_5_vl.published import published_config
from mmrlhf_jax.models.qwen_vit import QwenVitLayer
from mmrlhf_jax.planning.flops import flops
from mmrlhf_jax.planning.hlo import parse
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh

TOWER = published_config("Qwen2.5-VL-7B").vision
WINDOW, WINDOWS = TOWER.band, 16


def banded(q, k, v):
    """Windows of the most patches, which is where bands have the least advantage: shorter ones cost as much."""
    until = WINDOW * (1 + jnp.arange(WINDOWS * WINDOW, dtype=jnp.int32)[None] // WINDOW)
    return window_attention(q, k, v, until, WINDOW, backend="xla")


def exact(q, k, v):
    """Every window as a row of its own, which holds only where all windows are whole."""
    windows = (x.reshape(WINDOWS, WINDOW, *x.shape[2:]) for x in (q, k, v))
    return full_attention(*windows, backend="xla").reshape(q.shape)


def layer_program(attend, *, learns: bool):
    """A layer over one row, and its gradients if it `learns`, lowered."""
    kinds = dict(dtype=jnp.float32, param_dtype=jnp.float32)
    with use_mesh(make_mesh({}, jax.devices()[:1])):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: QwenVitLayer(TOWER, rngs=nnx.Rngs(0), **kinds)))
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    x = jax.ShapeDtypeStruct((1, WINDOWS * WINDOW, TOWER.hidden_size), jnp.float32)
    angle = jax.ShapeDtypeStruct((1, WINDOWS * WINDOW, 1, TOWER.hidden_size // TOWER.heads // 2), jnp.float32)

    def run(params, x, cos, sin):
        return nnx.merge(graphdef, params)(x, (cos, sin), attend)

    def step(params, x, cos, sin, cotangent):
        out, pull = jax.vjp(lambda params, x: run(params, x, cos, sin), params, x)
        return out, pull(cotangent)

    return jax.jit(step).lower(params, x, angle, angle, x) if learns else jax.jit(run).lower(params, x, angle, angle)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.long
def test_bands_cost_at_most_1_15_of_exact_windows_and_the_mlp(learns):
    """Also without the projections of the attention, which are the same in both."""
    assert (TOWER.hidden_size, TOWER.heads, TOWER.intermediate_size, WINDOW) == (1280, 16, 3420, 64)
    found = {attend: flops(parse(layer_program(attend, learns=learns).compile().as_text())) for attend in (banded, exact)}
    passes = 3 if learns else 1
    patches, width = WINDOWS * WINDOW, TOWER.hidden_size
    pairs = {exact: patches * WINDOW, banded: 3 * patches * WINDOW}
    for attend, count in found.items():
        products = 4 * width**2 + 3 * width * TOWER.intermediate_size
        assert count == pytest.approx(2 * passes * (patches * products + 2 * pairs[attend] * width), rel=0.01)
    projections = passes * 8 * patches * width**2
    assert 1 < found[banded] / found[exact] < (found[banded] - projections) / (found[exact] - projections) <= 1.15


@pytest.mark.long
def test_both_attend_alike():
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, WINDOWS * WINDOW, 2, 16)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(banded)(q, k, v), jax.jit(exact)(q, k, v), rtol=1e-5, atol=1e-6)
