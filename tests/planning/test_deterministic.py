"""With XLA's flag for deterministic operations the compiled train step adds nothing by atomic operations.

Compiled for an H100 by XLA's own compiler, and read in two places: the scatters of the optimised program, whose indices must be
sorted and unique, and the kernels' PTX, in which there must be no atomic instruction.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrlhf_jax.models.registry import DEFAULT
from tests.cuda_plugin import needs_cuda_plugin
from tests.families import FAMILIES
from tests.planning.planned import ROOT, write_small

FLAGS = {
    "deterministic": "--xla_gpu_deterministic_ops=true",
    "exclude": "--xla_gpu_exclude_nondeterministic_ops=true",
    "neither": "",
}
OBJECTIVES = {
    "mm-dpo": ["objective={kind: preference}"],
    "sorted": ["objective={kind: preference, losses: {aot: 1.0}}"],
    "one beta": ["objective={kind: preference, scaling: {mode: batch_implicit}}"],
    "running statistics": ["objective={kind: preference, scaling: {mode: beta_dpo, filtered: 0.2}}"],
    "reward model": ["objective={kind: reward_model, tie_weight: 0.1, centring: 0.01}", "model.reward_head=tanh"],
    "supervised": ["objective={kind: supervised}"],
    "adapters": ["objective={kind: preference, reference: adapter_base}", "lora={}", "trains.projector=false"],
}
SMALL = {"slots": 1024, "tiles": 2, "visual": 512, "targets": 512, "responses": 8, "pairs": 16, "accumulation": 1}
# Prints how many scatters the step has, and those whose indices are not both sorted and unique.
COMPILE = """
import json, sys
from mmrlhf_jax import config
from mmrlhf_jax.planning import lowering
launch, experiment, *overrides = sys.argv[1:]
lowered, *_ = lowering.lower_step(config.load_experiment(experiment, overrides), config.load_launch(launch))
text = lowered.compile().as_text()
scatters = [line for line in text.splitlines() if " scatter(" in line]
fixed = [line for line in scatters if "indices_are_sorted=true" in line and "unique_indices=true" in line]
print(json.dumps([len(scatters), [line for line in scatters if line not in fixed]]))
"""
ATOMIC = ("atom.", "red.")
KERNELS = ("attention_forward", "attention_queries_gradient", "attention_keys_gradient")


def compiled(folder: Path, flags: str, family: str, launch: str, overrides: list[str]) -> tuple[int, list[str], list[str]]:
    """(number of scatters, those that are not sorted and unique, atomic instructions in the kernels)."""
    settings = [f"batch.{key}={value}" for key, value in SMALL.items()]
    settings += [f"batch.rows={8 if launch == 'h100-8' else 1}", "trains.newline=false" if "lora={}" in overrides else ""]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment["XLA_FLAGS"] = f"--xla_dump_to={folder / 'dump'} {flags}"
    command = [
        sys.executable,
        "-c",
        COMPILE,
        f"launch/{launch}.yaml",
        str(write_small(folder, family)),
        *filter(None, settings),
    ]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.strip() for path in (folder / "dump").glob("*.ptx") for line in path.read_text().splitlines()]
    entries = " ".join(line for line in lines if ".entry" in line)
    assert all(name in entries for name in KERNELS), "these are compiled beside those that XLA writes"
    atomic = [line for line in lines if line.split(" ", 1)[-1 if line.startswith("@") else 0].startswith(ATOMIC)]
    return *json.loads(done.stdout.splitlines()[-1]), atomic


def cases() -> list:
    """Every objective on one card, the other families, eight cards, and the weaker flag; all but the first are slow."""
    found = [("deterministic", DEFAULT, "h100-1", name) for name in OBJECTIVES]
    found += [("deterministic", family, "h100-1", "mm-dpo") for family in FAMILIES if family != DEFAULT]
    found += [("deterministic", DEFAULT, "h100-8", "mm-dpo"), ("exclude", DEFAULT, "h100-1", "mm-dpo")]
    return [pytest.param(*case, marks=pytest.mark.long if i == 0 else pytest.mark.slow) for i, case in enumerate(found)]


@needs_cuda_plugin
@pytest.mark.parametrize(("flag", "family", "launch", "objective"), cases())
def test_no_sum_of_the_step_depends_on_the_order_in_which_threads_come(tmp_path, flag, family, launch, objective):
    scatters, unordered, atomic = compiled(tmp_path, FLAGS[flag], family, launch, OBJECTIVES[objective])
    assert scatters > 0 and unordered == [] and atomic == []


@needs_cuda_plugin
@pytest.mark.slow
def test_without_a_flag_there_are_such_sums(tmp_path):
    """So that what the test above looks for is what a compiler writes."""
    _, unordered, atomic = compiled(tmp_path, FLAGS["neither"], DEFAULT, "h100-1", OBJECTIVES["mm-dpo"])
    assert unordered and atomic
