"""Gradients are sums over thousands of tokens: in a bfloat16 model they are as good as sums in float64 of the same terms.

Of a kind of parameter the terms are what the model computes in bfloat16, rounding and all; only how they are added is judged.
A bfloat16 sum stands still at 256 times what is added. The whole step is then held to a bound leaf by leaf against float32's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.huggingface.load import load_model
from mmrlhf_jax.models.attention import xla
from mmrlhf_jax.models.decoder import Decoder, TextConfig
from mmrlhf_jax.models.layers import layer_norm, linear, matmul_precision, rms_norm
from mmrlhf_jax.models.lora import add_lora, with_reduce_dtype
from mmrlhf_jax.models.reward_head import RewardHead
from mmrlhf_jax.models.taps import weighted_taps
from mmrlhf_jax.objectives.logprobs import target_logps
from mmrlhf_jax.sharding.feed import place
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.state import split_model
from mmrlhf_jax.training.step import TrainState, loss_and_gradients
from tests import tiny
from tests.training import groups

TOKENS, WIDTH, OUTPUTS = 4096, 16, 12
HALF = jnp.bfloat16
EXACT = 1e-5  # of the norm: float32 sums of some thousand terms; in bfloat16 none is below 1e-3
MESH = make_mesh({}, jax.devices()[:1])
ROOT = Path(__file__).parents[2]


def error(found, expected) -> float:
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def draw(seed: int, *shape: int, dtype=np.float32, mean: float = 0.0) -> np.ndarray:
    """With a mean that is not zero sums grow, as those of real gradients do."""
    return (np.random.default_rng(seed).normal(size=shape) + mean).astype(dtype)


def gradients(run, model, cotangent) -> dict[str, np.ndarray]:
    """Of `run(model)` under a cotangent, by parameter."""
    graphdef, params = nnx.split(model)
    _, back = jax.vjp(lambda params: run(nnx.merge(graphdef, params)), params)
    return {".".join(path): np.asarray(x[...]) for path, x in nnx.to_flat_state(back(cotangent)[0])}


def layer(**more):
    with use_mesh(MESH):
        kinds = dict(dtype=HALF, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        return linear(WIDTH, OUTPUTS, ("embed", "mlp"), bias=True, **kinds)


def in_float64(*arrays):
    return (np.asarray(x, np.float64) for x in arrays)


@pytest.mark.long
def test_of_a_linear_layer_and_its_adapters():
    model = nnx.Module()
    model.layer = layer()
    add_lora(model, lambda path: True, rank=4, alpha=8)
    model.layer.lora_b[...] = jnp.asarray(draw(3, 4, OUTPUTS))
    x, back = jnp.asarray(draw(0, 2, TOKENS, WIDTH, mean=0.5), HALF), jnp.asarray(draw(1, 2, TOKENS, OUTPUTS, mean=0.2), HALF)
    found = gradients(lambda model: model.layer(x), model, back)
    scaled = back * jnp.asarray(2.0, HALF)
    low = x @ model.layer.lora_a[...].astype(HALF)
    to_low = scaled @ model.layer.lora_b[...].astype(HALF).T
    x, low, back, scaled, to_low = in_float64(x, low, back, scaled, to_low)
    expected = {
        "kernel": np.einsum("bsi,bso->io", x, back),
        "bias": back.sum((0, 1)),
        "lora_b": np.einsum("bsr,bso->ro", low, scaled),
        "lora_a": np.einsum("bsi,bsr->ir", x, to_low),
    }
    assert {name: error(found[f"layer.{name}"], value) for name, value in expected.items()} == {
        name: pytest.approx(0, abs=EXACT) for name in expected
    }


@pytest.mark.long
def test_of_norms():
    kinds = dict(dtype=HALF, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    x, back = jnp.asarray(draw(0, 2, TOKENS, WIDTH, mean=0.3), HALF), jnp.asarray(draw(1, 2, TOKENS, WIDTH, mean=0.2), HALF)
    with use_mesh(MESH):
        rms, layered = rms_norm(WIDTH, 1e-6, **kinds), layer_norm(WIDTH, 1e-6, **kinds)
    wide, wide_back = in_float64(x, back)
    of_rms = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    centred = wide - wide.mean(-1, keepdims=True)
    of_layer = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    found = gradients(lambda model: model(x), rms, back)
    assert error(found["scale"], (wide_back * of_rms).sum((0, 1))) < EXACT
    found = gradients(lambda model: model(x), layered, back)
    assert error(found["scale"], (wide_back * of_layer).sum((0, 1))) < EXACT
    assert error(found["bias"], wide_back.sum((0, 1))) < EXACT


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.long
def test_of_an_embedding_whose_tokens_come_again_and_again(tied):
    text = TextConfig(8, WIDTH, 8, layers=1, heads=1, kv_heads=1, head_dim=16, tied=tied, rope_theta=1e4, rms_norm_eps=1e-6)
    kinds = dict(dtype=HALF, param_dtype=jnp.float32, remat="none", attention="xla", rngs=nnx.Rngs(0))
    with use_mesh(MESH):
        model = Decoder(text, **kinds)
    tokens = np.random.default_rng(0).choice(8, (2, TOKENS), p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02, 0, 0])
    back = jnp.asarray(draw(1, 2, TOKENS, WIDTH, mean=0.2), HALF)
    found = gradients(lambda model: model.embed(tokens), model, back)["embedding.embedding"]
    expected = np.zeros((8, WIDTH))
    np.add.at(expected, tokens, np.asarray(back, np.float64))
    assert error(found, expected) < EXACT
    assert not found[6:].any()


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.long
def test_of_the_vocabulary_over_many_chunks_and_of_its_adapter(chunk):
    """Log-probs of 2 · 1,024 targets: the terms are outer products of bfloat16 states and what comes back to their logits."""
    words, targets = 40, 1024
    states = jnp.asarray(draw(0, 2, 300, WIDTH, mean=0.3), HALF)
    rng = np.random.default_rng(4)
    ids, predictors = rng.integers(0, 5, (2, targets)), rng.integers(0, 300, (2, targets))  # few words come often
    kernel, a, b = draw(1, WIDTH, words), draw(2, WIDTH, 4) * 0.3, draw(3, 4, words) * 0.3
    weights = draw(5, 2, targets, mean=1.0)

    def loss(kernel, b):
        return (target_logps(states, kernel, ids, predictors, adapter=(a, b), chunk=chunk).logps * weights).sum()

    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(kernel, b)
    chosen = jnp.take_along_axis(states, predictors[..., None], axis=1)
    low = chosen @ jnp.asarray(a, HALF)
    chosen, low, kernel, b = in_float64(chosen, low, jnp.asarray(kernel, HALF), jnp.asarray(b, HALF))
    logits = chosen @ kernel + low @ b
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    back = weights[..., None] * (np.eye(words)[ids] - probabilities)
    assert error(found[0], np.einsum("bme,bmv->ev", chosen, back)) < EXACT
    assert error(found[1], np.einsum("bmr,bmv->rv", low, back)) < EXACT


def test_a_frozen_vocabulary_has_no_sum_at_all():
    """Beside adapters it costs no array of its size."""
    states, ids = jnp.ones((1, 64, WIDTH), HALF), np.zeros((1, 64), np.int32)

    def loss(states, kernel):
        return target_logps(states, kernel, ids, ids, chunk=16).logps.sum()

    kernel = jax.ShapeDtypeStruct((WIDTH, 5003), jnp.float32)
    text, learnt = (str(jax.make_jaxpr(jax.grad(loss, argnums=n))(states, kernel)) for n in (0, (0, 1)))
    zeros = f"f32[{WIDTH},5003] = broadcast_in_dim"
    assert zeros in learnt and zeros not in text


@pytest.mark.long
def test_of_features_that_are_used_many_times():
    """A newline ends every line of every picture: its gradient is a sum, rounded once."""
    features = jnp.asarray(draw(0, 2, 9, WIDTH), HALF)
    taps = np.full((2, 2048, 4), 8)
    taps[..., 1:] = np.random.default_rng(1).integers(0, 8, (2, 2048, 3))
    weights = np.broadcast_to(np.float32([0.5, 0.25, 0.125, 0.125]), taps.shape)
    back = jnp.asarray(draw(2, 2, 2048, WIDTH, mean=0.2), HALF)
    _, pull = jax.vjp(lambda features: weighted_taps(features, taps, weights), features)
    expected = np.zeros((2, 9, WIDTH))
    for row in range(2):
        for tap in range(4):
            np.add.at(expected[row], taps[row, :, tap], weights[row, :, tap, None] * np.asarray(back[row], np.float64))
    np.testing.assert_allclose(pull(back)[0].astype(np.float32), expected, rtol=2**-8)


@pytest.mark.long
def test_of_keys_that_many_blocks_of_queries_see(monkeypatch):
    """The gradient of a block's keys is float32 until all of a key's blocks are added up, then rounded once."""
    monkeypatch.setattr(xla, "QUERY_BLOCKS", (16, 16))
    monkeypatch.setattr(xla, "DENSE_LIMIT", 16)
    q, k, v = (jnp.asarray(draw(i, 1, 192, 2, 8, mean=0.1), HALF) for i in range(3))
    back = jnp.asarray(draw(3, 1, 192, 2, 8, mean=0.5), HALF)
    until = np.full((1, 192), 192)

    def found(q, k, v):
        return jax.jit(lambda *x: jax.vjp(lambda *x: xla.attend(*x, until), *x)[1](back.astype(x[0].dtype)))(q, k, v)

    half, whole = found(q, k, v), found(*(x.astype(jnp.float32) for x in (q, k, v)))
    assert error(half[2], whole[2]) < 2.5e-3  # the weights of the sum, too, are bfloat16


@pytest.mark.parametrize("variant", ["tanh", "silu", "linear"])
@pytest.mark.long
def test_scores_of_a_bfloat16_model_are_float32s(variant):
    with use_mesh(MESH):
        head = RewardHead(WIDTH, variant, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    hidden = jnp.asarray(draw(0, 3, 5, WIDTH), HALF)
    found, wide = head(hidden), np.asarray(hidden, np.float64)
    if variant != "linear":
        wide = wide @ np.asarray(head.dense.kernel[...], np.float64) + np.asarray(head.dense.bias[...], np.float64)
        wide = np.tanh(wide) if variant == "tanh" else wide / (1 + np.exp(-wide))
    expected = wide @ np.asarray(head.out.kernel[...], np.float64) + np.asarray(head.out.bias[...], np.float64)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected[..., 0], rtol=1e-5, atol=1e-6)


def test_a_head_that_only_scores_is_loaded_in_float32(tmp_path):
    from mmrlhf_jax.inference.engine import Engine

    engine = Engine.load(str(tiny.checkpoint(tmp_path, reward_head=True)), dtype="bfloat16", mesh=MESH)
    params = nnx.state(engine.model.whole())
    assert {x.dtype.name for x in jax.tree.leaves(params["reward_head"])} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(params["language"])} == {"bfloat16"} == {jnp.dtype(engine.dtype).name}


SHARED = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from mmrlhf_jax.models.layers import linear
from mmrlhf_jax.models.lora import with_reduce_dtype
from mmrlhf_jax.sharding.mesh import batch_sharding, make_mesh, use_mesh

rng = np.random.default_rng(0)
x, back = (jnp.asarray(rng.normal(size=(8, 64, width)) + 0.3, jnp.bfloat16) for width in (128, 64))
expected = np.einsum("bsi,bso->io", np.asarray(x, np.float64), np.asarray(back, np.float64))
worst = {}
for axes in json.loads(sys.argv[1]):
    for dtype in ("float32", "bfloat16"):
        mesh = make_mesh(axes)
        with use_mesh(mesh):
            layer = linear(128, 64, ("embed", "mlp"), bias=False, dtype=jnp.bfloat16, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
            graphdef, params = nnx.split(with_reduce_dtype(layer, dtype))
            run = jax.jit(lambda p, x, back: jax.vjp(lambda p: nnx.merge(graphdef, p)(x), p)[1](back)[0])
            placed = [jax.device_put(a, batch_sharding(mesh, 3)) for a in (x, back)]
            found = np.asarray(run(params, *placed)["kernel"][...], np.float64)
        worst[json.dumps([axes, dtype])] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
print(json.dumps(worst))
"""


@pytest.mark.long
def test_over_the_devices_that_share_a_matrix():
    """In float32, or where the experiment says so in bfloat16: each device's part is then rounded, and every sum of two."""
    meshes = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "context": 2}]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SHARED, json.dumps(meshes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, found in json.loads(done.stdout.splitlines()[-1]).items():
        low, high = (0, EXACT) if json.loads(case)[1] == "float32" else (1e-4, 2e-2)
        assert low <= found <= high, (case, found)


def test_the_experiment_says_in_what_matrices_are_summed(tmp_path):
    from mmrlhf_jax.training.base import load_base

    for dtype in ("float32", "bfloat16"):
        settings = {"model": {"path": str(tiny.checkpoint(tmp_path / dtype)), "reduce_dtype": dtype}, "data": {"path": "d"}}
        made = config.Experiment.model_validate(settings | {"objective": {"kind": "supervised"}, "run": {"directory": "r"}})
        with use_mesh(MESH):
            model = load_base(made, MESH)
        assert model.language.layers.mlp.up.reduce_dtype == model.projector.down.reduce_dtype == dtype


def test_nothing_is_summed_in_less_than_what_a_model_computes_in():
    x = jnp.asarray(draw(0, 1, 64, WIDTH))
    model = with_reduce_dtype(layer(), "bfloat16")
    model.dtype = jnp.float32
    found = gradients(lambda model: model(x), model, jnp.ones((1, 64, OUTPUTS)))
    assert error(found["kernel"], np.repeat(np.asarray(x, np.float64).sum((0, 1))[:, None], OUTPUTS, 1)) < EXACT


# Of the leaf's norm. What is left is rounding of weights and activations (8 bits, some ten layers deep), not of sums.
BOUND = 0.025
# The score's gradient is the difference of two answers' hidden states, which are much alike.
BOUND_OF_HEAD = 0.045


@pytest.mark.slow
def test_every_leaf_of_a_bfloat16_step_is_within_its_bound_of_the_float32_step(tmp_path):
    directory, examples = groups.checkpoint(tmp_path / "model"), groups.examples(tmp_path)[1:4]
    found = {}
    for dtype in ("float32", "bfloat16"):
        with use_mesh(MESH), matmul_precision(dtype):
            model = load_model(directory, mesh=MESH, remat="none", dtype=jnp.dtype(dtype))
            graphdef, params, frozen = split_model(model, config.Trains(vision_tower=True))
            batch = place(groups.packed(model, examples, "critique", per_row=3), MESH)
            objective = task_of(config.RewardModel(centring=0.01))
            settings = dict(chunk=2, accumulation=1, seed=0, reference=None)
            step = jax.jit(
                lambda state, g=graphdef, b=batch, o=objective, s=settings: loss_and_gradients(g, o, state, b, **s)[2]
            )
            gradient = step(TrainState(jnp.int32(0), params, frozen, ()))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
        found[dtype] = {".".join(path): np.asarray(leaf[...], np.float64) for path, leaf in nnx.to_flat_state(gradient)}
    largest = max(np.linalg.norm(leaf) for leaf in found["float32"].values())
    for name, leaf in found["float32"].items():
        if name == "vision.layers.attention.k.bias":  # shifts all scores of a query: its true gradient is 0
            assert np.linalg.norm(found["bfloat16"][name]) < 1e-4 * largest
            continue
        bound = BOUND_OF_HEAD if name.startswith("reward_head") else BOUND
        assert error(found["bfloat16"][name], leaf) < bound, name
