"""Loss, every metric and every leaf of the gradient of a group step are those of one device on any mesh.

Rows have pictures of unlike sizes, only text, and nothing; neither targets nor visual tokens are a multiple of a mesh axis.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_jax.models.registry import DEFAULT
from tests.families import FAMILIES
from tests.training.groups import OBJECTIVES

ROOT = Path(__file__).parents[2]
ROWS_AND_SLOTS, SLOTS_AND_WIDTHS = {"fsdp": 2, "context": 2}, {"tensor": 2, "context": 2}
OTHERS = [{"context": 4}, {"data": 2, "context": 2}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2}, {"tensor": 4}]
QUICK = [(family, "mm-dpo", [ROWS_AND_SLOTS, SLOTS_AND_WIDTHS]) for family in FAMILIES]
QUICK.append((DEFAULT, "beta-dpo, filtered", [ROWS_AND_SLOTS, SLOTS_AND_WIDTHS]))
ALL = [
    (family, name, OTHERS if name == "mm-dpo" else [ROWS_AND_SLOTS, SLOTS_AND_WIDTHS, *OTHERS])
    for family in FAMILIES
    for name in OBJECTIVES
]


@pytest.mark.parametrize(
    ("family", "name", "meshes"),
    [
        *(pytest.param(*case, id="-".join(case[:2])) for case in QUICK),
        *(pytest.param(*case, id="-".join(("all", *case[:2])), marks=pytest.mark.slow) for case in ALL),
    ],
)
@pytest.mark.long
def test_a_group_step_on_a_mesh_equals_the_one_on_one_device(tmp_path, family, name, meshes):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.many_meshes", str(tmp_path), family, name, json.dumps(meshes)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(": equal") == len(meshes)
