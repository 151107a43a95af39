"""Every launch file's mesh can be laid over its accelerator's chips, and every published model's parameters over the mesh."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest

from mmrlhf_jax import config
from mmrlhf_jax.sharding.rules import TILE_ROWS
from tests.launch.launchers import BUCKET, EXPERIMENT, ROOT

WIDTH = 3584  # of the 7B model
PODS = [path for path in sorted((ROOT / "launch").glob("v*.yaml"))]
STATE = """
import sys, math, json
import jax
from mmrlhf_jax import config
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.planning import lowering
from mmrlhf_jax.planning.abstract import abstract_model, abstract_state
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.training.optimizer import make_optimizer

experiment = config.load_experiment("configs/mmdpo_llava_ov_7b.yaml")
sizes, _ = lowering.model_sizes(experiment)
for name in sys.argv[1:]:
    launch = config.load_launch(name)
    mesh = make_mesh(launch.mesh.model_dump(), lowering.planned_devices(launch))
    tx = make_optimizer(experiment.optimizer, 10, family_of(sizes).parts, experiment.guard)
    _, state = abstract_state(abstract_model(sizes, experiment, mesh), experiment, tx, mesh, keep_start=False)
    here = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state))
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    print(json.dumps([name, mesh.size, here, whole]))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.long
def test_the_state_of_a_7b_model_is_spread_over_all_chips_of_every_pod():
    """Within 15 % of an equal share of each slice's storage: what does not divide (norms, some of the tower) is small.

    Parameters are stored over fsdp and context, without context where that would leave pieces that are no whole tiles.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # the tests' own flags are for CPUs: libtpu ends at those that it does not know
    command = [sys.executable, "-c", STATE, *map(str, PODS)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(PODS)
    for name, size, here, whole in map(json.loads, lines):
        mesh = config.load_launch(name).mesh
        replicas = math.prod(mesh.slices.values())
        whole_tiles = WIDTH // (size // replicas // mesh.tensor) % TILE_ROWS == 0
        share = size / replicas if whole_tiles else size / replicas / mesh.context
        assert here <= 1.15 * whole / share, name


def test_launchers_read_their_files_without_importing_jax():
    """They run on the machine that one types at, several times in a row."""
    code = f"""
import sys
import mmrlhf_jax.launching.jobset
from mmrlhf_jax.launching.describe import describe, directories
describe("launch/v5e-16.yaml")
directories({EXPERIMENT!r}, {BUCKET!r})
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
