"""Sharding changes where a step is computed, not what: eight devices give the one device's pair-expanded step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import many_devices


@pytest.mark.parametrize("case", [0, *[pytest.param(i, marks=pytest.mark.slow) for i in range(1, len(many_devices.CASES))]])
@pytest.mark.long
def test_a_group_step_on_eight_devices_equals_the_pair_expanded_step_on_one(tmp_path, case):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.training.many_devices", str(tmp_path), str(case)]
    root = Path(__file__).parents[2]
    found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1200)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "equal on 8 devices" in found.stdout
