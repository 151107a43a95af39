"""The experiments that are made for one card: they fit it by plan, and `mmrlhf train` runs them on the launch file of one GPU.

The runs are on the CPU at small shapes. Their settings are those of the files but for sizes, paths and the number of steps. All
groups are copies of one, so that every step sees the same pairs, and all rewards are equal, so that β is the same for each.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from mmrlhf_jax import config
from mmrlhf_jax.huggingface.model_config import read_config
from mmrlhf_jax.models.registry import family_of, published_config
from mmrlhf_jax.sharding.mesh import make_mesh, use_mesh
from mmrlhf_jax.training.base import load_base
from mmrlhf_jax.training.directory import CHECKPOINTS, CONFIG_FILE
from mmrlhf_jax.training.trained import load_trained
from tests import ranked
from tests.cuda_plugin import needs_cuda_plugin
from tests.families import FAMILIES
from tests.planning.planned import COMMAND, ROOT, plan

STEPS, EVERY, GROUPS = 4, 2, 6
FULL = "mmdpo_internvl2_1b"
PREFERENCE = ("mmdpo_lora_llava_ov_7b", "mmdpo_lora_internvl3_8b", "mmdpo_lora_qwen2_5_vl_7b", FULL)
EVERY_ONE = (*PREFERENCE, "reward_lora_llava_ov_7b", "reward_lora_internvl3_8b")


def family(name: str):
    published = published_config(config.load_experiment(ROOT / "configs" / f"{name}.yaml").model.path)
    return FAMILIES[published.model_type]


def data(directory: Path) -> tuple[Path, Path]:
    """(records, their rewards)."""
    records = ranked.write(directory, [(1, 2, 2, 3)], [[(40, 30)]])
    (group,) = map(json.loads, records.read_text().splitlines())
    copies = [group | {"id": f"copy-{i}"} for i in range(GROUPS)]
    records.write_text("".join(json.dumps(each) + "\n" for each in copies))
    rewards = directory / "rewards.jsonl"
    scores = [{"reward": 1.0, "critique": "fine"} for _ in group["responses"]]
    rewards.write_text("".join(json.dumps({"id": each["id"], "responses": scores}) + "\n" for each in copies))
    return records, rewards


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function of an experiment's name: (the command that trains it, its run directory), trained once."""

    @functools.cache
    def trained(name: str) -> tuple[list[str], Path]:
        root = tmp_path_factory.mktemp(name)
        model, directory = family(name).checkpoint(root / "model"), root / "run"
        records, rewards = data(root / "data")
        settings = {"model.path": model, "data.path": records, "data.workers": 0, "batch.rows": 2, "batch.slots": 768}
        settings |= {"run.directory": directory, "run.steps": STEPS, "run.checkpoint_every": EVERY}
        settings |= {"data.rewards": rewards} if name in PREFERENCE else {}
        command = [sys.executable, "-c", COMMAND, "train", f"configs/{name}.yaml", "--launch", "launch/gpu-1.yaml"]
        command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        train(command)
        return command, directory

    return trained


def train(command: list[str]) -> str:
    """What the trainer says, having ended well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def figures(run: Path) -> dict[int, dict[str, float]]:
    """By step."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows}


def parameters(model) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def moved(run: Path) -> tuple[set[str], set[str]]:
    """Names of the parameters that are other bits than the base model's, and of all others."""
    mesh = make_mesh({}, jax.devices()[:1])
    trained = load_trained(run, mesh=mesh)
    assert trained.step == STEPS
    with use_mesh(mesh):
        base = parameters(load_base(trained.experiment, mesh))
    found = parameters(trained.model)
    assert found.keys() == base.keys()
    changed = {name for name in found if found[name].tobytes() != base[name].tobytes()}
    return changed, found.keys() - changed


@needs_cuda_plugin
@pytest.mark.parametrize("name", EVERY_ONE)
@pytest.mark.slow
def test_it_fits_its_card_by_plan(tmp_path, name):
    """At its real size: the step, and the passes that the run has beside it."""
    card = "l4-1" if name == FULL else "h100-1"
    made = plan(
        ROOT / "configs" / f"{name}.yaml",
        "--launch",
        ROOT / "launch" / f"{card}.yaml",
        "--quick",
        "--no-generation",
        cache=tmp_path,
    )
    assert not made["stand_in"] and made["fits"] and made["hbm_peak_bytes"] < 0.9 * made["hbm_capacity_bytes"]


@pytest.mark.parametrize("name", EVERY_ONE)
@pytest.mark.long
def test_it_takes_a_row_at_a_time_and_its_loss_is_another_after_every_step(run, name):
    _, directory = run(name)
    experiment = config.load_experiment(directory / CONFIG_FILE)
    assert experiment.batch.accumulation == experiment.batch.rows == 2
    found = figures(directory)
    losses = [found[step]["loss"] for step in range(1, STEPS + 1)]
    assert np.isfinite(losses).all() and len(set(losses)) == STEPS


@pytest.mark.parametrize("name", EVERY_ONE)
@pytest.mark.long
def test_what_should_learn_moves_and_nothing_else(run, name):
    _, directory = run(name)
    changed, kept = moved(directory)
    parts = family_of(read_config(config.load_experiment(directory / CONFIG_FILE).model.path)).parts

    def parts_of(paths: set[str]) -> set[str]:
        return {parts[path.split(".")[0]] for path in paths}

    if name == FULL:
        assert parts_of(changed) == {"language_model", "projector"} and parts_of(kept) == {"vision_tower"}
        return
    adapters = {path for path in changed | kept if path.endswith(("lora_a", "lora_b"))}
    assert adapters <= changed and parts_of(adapters) == {"language_model"}
    assert parts_of(changed - adapters) == (set() if name in PREFERENCE else {"reward_head"})


@pytest.mark.parametrize("name", PREFERENCE)
@pytest.mark.long
def test_the_reference_is_the_base_model_at_every_step(run, name):
    """With one β and the same pairs in every step, a reward is β times what the log-prob has gained since step 1."""
    _, directory = run(name)
    objective = config.load_experiment(directory / CONFIG_FILE).objective
    assert objective.reference == ("cached" if name == FULL else "adapter_base")
    found = figures(directory)
    for side in ("chosen", "rejected"):
        rewards = [found[step][f"rewards/{side}"] for step in range(1, STEPS + 1)]
        gained = [found[step][f"logps/{side}"] - found[1][f"logps/{side}"] for step in range(1, STEPS + 1)]
        # Log-probs here are near -170, where float32 has steps of 1.5e-5.
        np.testing.assert_allclose(rewards, objective.beta * np.asarray(gained), atol=1e-5)
        assert min(map(abs, rewards[1:])) > 1e-4


@pytest.mark.parametrize("name", EVERY_ONE)
@pytest.mark.long
def test_it_continues_from_a_checkpoint_bit_for_bit(run, name):
    command, directory = run(name)
    before = figures(directory)
    shutil.rmtree(directory / CHECKPOINTS / str(STEPS))
    assert f"resumed from step {STEPS - EVERY}" in train(command)
    after = figures(directory)
    assert [after[step]["loss"] for step in sorted(after)] == [before[step]["loss"] for step in sorted(before)]
