"""An image of 4096 x 4096 pixels goes through a train step on the command line, its patches and slots shared by `context`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import ranked
from tests.families import qwen2_5_vl

SIDE, TOKENS, SLOTS = 4096, 146**2, 22016  # a visual token is 28 x 28 pixels
ROOT = Path(__file__).parents[2]
# One head per device, of few numbers: 85,264 patches see each other.
WIDTHS = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "depth": 2, "patch_size": 14, "window_size": 112}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}


@pytest.mark.slow
def test_a_train_step_with_the_patches_of_one_large_image(tmp_path):
    """Without `data.max_pixels` the checkpoint's own limit would make it smaller."""
    raw = qwen2_5_vl.config(vision=WIDTHS, text=TEXT | {"max_position_embeddings": 32768})
    checkpoint = qwen2_5_vl.checkpoint(tmp_path / "model", raw)
    data = ranked.write(tmp_path / "data", [(1, 2)], [[(SIDE, SIDE)]])
    experiment = {
        "model": {"path": str(checkpoint), "dtype": "float32", "remat": "full"},
        "data": {"path": str(data), "max_pixels": SIDE**2},
        "objective": {"kind": "supervised"},
        "optimizer": {"learning_rate": 1e-3},
        "batch": {"rows": 1, "slots": SLOTS, "logprob_chunk": 64},
        "run": {"directory": str(tmp_path / "run"), "steps": 1},
    }
    files = {"experiment": experiment, "launch": {"mesh": {"fsdp": 1, "context": 2}}}
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", "from mmrlhf_jax.cli import main; main()", "train", str(tmp_path / "experiment.yaml")]
    command += ["--launch", str(tmp_path / "launch.yaml")]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert TOKENS < line["tokens"] < SLOTS
    assert math.isfinite(line["loss"]) and 0 < line["grad_norm"] < math.inf
