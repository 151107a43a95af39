"""What the TPU compiler makes of attention, on a machine without a TPU. Needs libtpu; nothing runs on a device.

Inside whole layers, scanned and recomputed in the backward pass, sharded as in training: that `auto` picks the kernels for
a TPU though the host is a CPU, that they compile for every generation, and that they need less memory than XLA's way.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (`pip install libtpu`)")

KERNELS = ["attention_forward", "attention_keys_gradient", "attention_queries_gradient"]


def compiled(cache: Path, part: str, topology: str, size: int, axes: str, *backends: str) -> dict[str, dict]:
    """Per backend: temporaries per device in bytes, and the kernels in the program."""
    script = Path(__file__).with_name("tpu_compile.py")
    command = [sys.executable, str(script), part, topology, str(size), axes, *backends]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["backend"]: line for line in lines}


@pytest.mark.slow
def test_a_layer_sharded_over_rows_and_heads_gets_the_kernels_forward_and_backward(tmp_path):
    found = compiled(tmp_path, "language", "v5e:2x2", 1024, "2x2", "auto")
    assert found["auto"]["kernels"] == KERNELS


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5:2x2x1"])
@pytest.mark.parametrize("slots", [8192, 16384])
def test_long_rows_of_7b_layers_need_less_memory_than_by_xla(tmp_path, topology, slots):
    found = compiled(tmp_path, "language", topology, slots, "4x1", "xla", "auto")
    assert found["auto"]["kernels"] == KERNELS and found["xla"]["kernels"] == []
    assert found["auto"]["temporaries"] < found["xla"]["temporaries"]


@pytest.mark.slow
def test_the_tower_needs_less_memory_for_many_tiles_than_by_xla(tmp_path):
    found = compiled(tmp_path, "tower", "v5e:2x2", 10, "4x1", "xla", "auto")
    assert found["auto"]["kernels"] == ["attention_forward"] and found["xla"]["kernels"] == []
    assert found["auto"]["temporaries"] < found["xla"]["temporaries"]


@pytest.mark.slow
def test_a_trained_tower_of_1025_slots_gets_the_kernels_with_one_block_a_tile(tmp_path):
    found = compiled(tmp_path, "trained tower", "v5e:2x2", 13, "4x1", "xla", "auto")
    assert found["auto"]["kernels"] == KERNELS and found["xla"]["kernels"] == []
    assert found["auto"]["temporaries"] < found["xla"]["temporaries"]
