"""An image of 4096 x 4096 pixels, and a video of 64 frames, go through a train step on the command line. The axis `context`
shares their patches and slots among two devices."""

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
from tests.families import qwen2_5_vl, qwen3_vl
from tests.test_every_family import with_video

ROOT = Path(__file__).parents[2]
SIDE, FRAMES = 4096, 64
# One head per device, of few numbers, because all patches of the image see each other.
WIDTHS = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "depth": 2}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 32768,
}


def train(root: Path, checkpoint: Path, data: dict, slots: int) -> dict[str, float]:
    """The figures of a step on two devices."""
    experiment = {
        "model": {"path": str(checkpoint), "dtype": "float32", "remat": "full"},
        "data": data,
        "objective": {"kind": "supervised"},
        "optimizer": {"learning_rate": 1e-3},
        "batch": {"rows": 1, "slots": slots, "logprob_chunk": 64},
        "run": {"directory": str(root / "run"), "steps": 1},
    }
    files = {"experiment": experiment, "launch": {"mesh": {"fsdp": 1, "context": 2}}}
    for name, content in files.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", "from mmrlhf_jax.cli import main; main()", "train", str(root / "experiment.yaml")]
    command += ["--launch", str(root / "launch.yaml")]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = map(json.loads, (root / "run" / "metrics.jsonl").read_text().splitlines())
    assert math.isfinite(line["loss"]) and 0 < line["grad_norm"] < math.inf
    return line


@pytest.mark.slow
def test_a_train_step_with_the_patches_of_one_large_image(tmp_path):
    """Without `data.max_pixels` the checkpoint's own limit would make it smaller."""
    raw = qwen2_5_vl.config(vision=WIDTHS | {"patch_size": 14, "window_size": 112}, text=TEXT)
    data = ranked.write(tmp_path / "data", [(1, 2)], [[(SIDE, SIDE)]])
    checkpoint = qwen2_5_vl.checkpoint(tmp_path / "model", raw)
    line = train(tmp_path, checkpoint, {"path": str(data), "max_pixels": SIDE**2}, slots=22016)
    assert 146**2 < line["tokens"] < 22016  # a visual token is 28 x 28 pixels


@pytest.mark.slow
def test_a_train_step_with_a_video_of_64_frames(tmp_path):
    """Every second frame is half a second behind the one before, and its patch of time stands behind that time."""
    raw = qwen3_vl.config(
        vision=WIDTHS | {"patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": [0]}, text=TEXT
    )
    data = with_video(ranked.write(tmp_path / "data", [(1, 2)], [[(360, 640)] * FRAMES]))
    settings = {"path": str(data), "video_frames": FRAMES, "frames_per_second": 2.0}
    line = train(tmp_path, qwen3_vl.checkpoint(tmp_path / "model", raw), settings, slots=8192)
    visual, times = 32 * 11 * 20, 32 * len("<0.2 seconds>")  # tokens of 32 x 32 pixels, and a token for every byte
    assert visual + times < line["tokens"] < 8192
