"""`mmrlhf plan` as a command, and a small model for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families import FAMILIES

ROOT = Path(__file__).parents[2]
SMALL = """
model: {path: MODEL, dtype: bfloat16, param_dtype: float32}
data: {path: not there, video_frames: 1}
objective: {kind: preference}
trains: {vision_tower: false}
batch: {rows: 16, slots: 8192}
run: {directory: not made}
"""
COMMAND = "from mmrlhf_jax.cli import main; main()"
STEP_ALONE = ("--no-generation", "--no-passes")


def plan(*arguments: str | Path, cache: Path, path: str = "") -> dict:
    """The plan as JSON. `cache` is a folder for compiled programs; modules in the folder `path` come before all others."""
    environment = os.environ | {"PYTHONPATH": f"{path}:{ROOT}", "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # the tests' own flags are for CPUs: libtpu ends at those that it does not know
    command = [sys.executable, "-c", COMMAND, "plan", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def write_small(folder: Path, family: str) -> Path:
    """An experiment with matrices of megabytes and tiles of the published size; of weights there are none."""
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2}
    tower = {"hidden_size": 144, "intermediate_size": 288, "num_attention_heads": 2, "num_hidden_layers": 3}
    (folder / "model").mkdir()
    published = FAMILIES[family].PUBLISHED_GEOMETRY
    parts = {"text": text | {"vocab_size": 4096, "tie_word_embeddings": False}, "vision": published["vision"] | tower}
    (folder / "model" / "config.json").write_text(json.dumps(FAMILIES[family].config(**published | parts)))
    (folder / "small.yaml").write_text(SMALL.replace("MODEL", str(folder / "model")))
    return folder / "small.yaml"


def check(made: dict) -> None:
    """What holds for every plan of a pod."""
    assert made["fits"] and made["hbm_peak_bytes"] < made["hbm_capacity_bytes"]
    assert made["flops"] == pytest.approx(made["analytic_flops"], rel=0.05)
    assert made["gathered_activations"] == []
    assert 0 < sent(made, "all-reduce") < sent(made, "reduce-scatter") / 2


def longest_part(roofline: dict) -> float:
    return max(roofline[f"{part}_seconds"] for part in ("compute", "hbm", "interconnect"))


def sent(made: dict, kind: str) -> int:
    return sum(each["bytes"] for each in made["collectives"] if each["kind"] == kind and "fsdp" in each["axis"])
