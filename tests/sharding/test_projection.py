"""Log-probs of targets do not depend on where vocabulary, rows and targets lie; nor do the gradients. Nor does a reward head's
product, whose gradient goes round the same ring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from mmrlhf_jax.objectives.logprobs import target_logps
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.sharding.ring import multiply

rng, size = np.random.default_rng(0), int(sys.argv[2])
hidden, vocabulary = rng.normal(size=(8, 20, 128)).astype(np.float32), rng.normal(size=(128, size)).astype(np.float32)
targets, predictors = rng.integers(0, size, (8, 13)), rng.integers(0, 20, (8, 13))

def loss(hidden, vocabulary):
    found = target_logps(hidden, vocabulary, targets, predictors, chunk=4)
    head = multiply(hidden[:, ::7], vocabulary, ("embed", None))
    return (found.logps * np.arange(13)).sum() + (head * np.arange(size)).sum(), (*found, head)

def run():
    (_, found), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, vocabulary)
    return [np.asarray(x) for x in (*found, *gradients)]

with jax.default_matmul_precision("highest"):
    expected = run()
    scales = [np.abs(x).max() for x in expected]
    scales[3] = scales[0]  # an entropy is as exact as the log-probs that it is the mean of
    worst = {}
    for mesh in json.loads(sys.argv[1]):
        with use_mesh(make_mesh(mesh)):
            found = run()
        worst[json.dumps(mesh)] = max(float(np.abs(a - b).max() / s) for a, b, s in zip(found, expected, scales))
print(json.dumps(worst))
"""
MESHES = [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 4, "context": 2}]


@pytest.mark.parametrize(("size", "meshes"), [(32, MESHES), (33, MESHES[1:2])], ids=["even vocabulary", "odd vocabulary"])
@pytest.mark.long
def test_values_and_gradients_are_those_of_one_device(size, meshes):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, json.dumps(meshes), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert len(worst) == len(meshes)
    assert worst == {mesh: pytest.approx(0, abs=2e-6) for mesh in worst}
