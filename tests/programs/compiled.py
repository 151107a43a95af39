"""What the command line of one source tree compiles: its verbs are run, and XLA or the plan writes the programs down.

Only what does not change is relied on: the verbs and their options, experiment and launch files, and that `mmrlhf plan` keeps
what it compiled below XDG_CACHE_HOME.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests import ranked
from tests.sharding import loopback

# Beside a step JAX compiles many small programs, such as the sum of two numbers.
LARGE = 200  # instructions
CONFIGS = {"preference": "configs/mmdpo_llava_ov_7b.yaml", "reward_model": "configs/reward_llava_ov_7b.yaml"}
POD = "launch/v5e-64.yaml"
MESHES = {1: {"fsdp": 1}, 8: {"data": 1, "fsdp": 2, "tensor": 2, "context": 2}}
QUESTION = "What is over the red bird?"
_RUN = """
import pathlib, sys
import mmrlhf_jax
tree, found = pathlib.Path.cwd(), pathlib.Path(mmrlhf_jax.__file__)
assert found.resolve().is_relative_to(tree.resolve()), f"{found} is not of {tree}"
from mmrlhf_jax.cli import main
main()
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line, and for what it compiles: that many CPU devices, or with None the pod that it names.

    `{folder}` in an argument is the folder for what the command writes.
    """

    name: str
    arguments: tuple[str, ...]
    devices: int | None
    programs: int  # that are large, at the least

    def __str__(self) -> str:
        return f"{self.name} on {'v5e-64' if self.devices is None else f'{self.devices} CPU devices'}"


def write_inputs(root: Path) -> list[Command]:
    """Checkpoints, data, experiments and launch files in `root`, which all trees read; and the commands."""
    names = _write_experiments(root)
    here = [each for devices, mesh in MESHES.items() for each in _commands(root, names, devices, mesh)]
    return here + [_plan(kind) for kind in CONFIGS]


def _write_experiments(root: Path) -> dict[str, int]:
    """The names of the experiments in `root`, and how many large programs a run compiles."""
    made = {kind: loopback.write_experiment(root / kind, kind, steps=1, eval_every=1) for kind in CONFIGS}
    for kind, experiment in made.items():
        held_out = ranked.write(root / kind / "held_out", loopback.RANKS, loopback.IMAGES, seed=1)
        experiment["data"]["held_out"] = str(held_out)
        experiment["run"]["directory"] = "given by the command"
    preference = made["preference"]
    preference["objective"]["reference"] = "cached"  # β by the margins of rewards is the default
    parts = {name: False for name in ("projector", "newline", "reward_head")}
    made["adapters"] = preference | {
        "objective": {"kind": "preference", "reference": "adapter_base"},
        "lora": {"rank": 4},
        "trains": parts,
        "batch": preference["batch"] | {"accumulation": 2},
    }
    made["supervised"] = preference | {"objective": {"kind": "supervised"}}
    for name, experiment in made.items():
        _write(root / f"{name}.yaml", experiment)
    return {name: 3 if name == "preference" else 2 for name in made}  # a step, the evaluation, the reference pass


def _commands(root: Path, experiments: dict[str, int], devices: int, mesh: dict[str, int]) -> list[Command]:
    launch = _write(root / f"launch-{devices}.yaml", {"mesh": mesh})
    policy, judge = ("--model", str(root / "preference" / "model")), ("--model", str(root / "reward_model" / "model"))
    data = ("--data", str(root / "preference" / "data" / "records.jsonl"))
    image = ("--image", str(root / "preference" / "data" / "1_0.png"))
    out, length = ("--out", "{folder}/out.jsonl"), ("--max-new-tokens", "8")
    made = []
    for name, programs in experiments.items():
        arguments = ("train", str(root / f"{name}.yaml"), "--launch", str(launch), "--set", "run.directory={folder}/run")
        made.append(Command(f"train {name}", arguments, devices, programs))
    made.append(Command("logprobs", ("logprobs", *policy, *data, *out), devices, 1))
    made.append(Command("score", ("score", *judge, *data, "--critique", "written", *length, *out), devices, 2))
    made.append(Command("generate", ("generate", *policy, *image, "--prompt", QUESTION, *length), devices, 1))
    return made


def _plan(kind: str) -> Command:
    """Of data that is not at hand the sizes are assumed. The accumulation is said here, as launch files may say it as well."""
    held_out = ["held_out", "held_out_rewards"] if kind == "preference" else ["held_out"]
    settings = ["batch.accumulation=1", *(f"data.{key}=not_here" for key in held_out)]
    options = [each for setting in settings for each in ("--set", setting)]
    arguments = ("plan", CONFIGS[kind], "--launch", POD, "--quick", "--json", *options)
    return Command(f"plan {kind} 7b", arguments, None, 4 if kind == "preference" else 3)


def compile_in(tree: Path, command: Command, folder: Path) -> list[str]:
    """Texts of the large optimised programs that the command compiles in that tree. RuntimeError where it fails.

    `folder` is made for what the command writes, and removed.
    """
    folder.mkdir(parents=True)
    line = [sys.executable, "-c", _RUN, *(each.replace("{folder}", str(folder)) for each in command.arguments)]
    done = subprocess.run(line, cwd=tree, env=_environment(tree, command, folder), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} in {tree}: status {done.returncode}\n{done.stderr[-3000:]}")
    found = [path.read_text() for path in sorted(folder.glob("programs/*after_optimizations.txt"))]
    for path in sorted(folder.glob("cache/**/*.json.gz")):
        found.append(json.loads(gzip.decompress(path.read_bytes()))["text"])
    shutil.rmtree(folder)
    return [text for text in found if text.count(" = ") >= LARGE]


def _environment(tree: Path, command: Command, folder: Path) -> dict[str, str]:
    """No compiled program is read from a cache: it would have no text."""
    flags = ["--xla_dump_large_constants=true"]
    if command.devices is not None:
        flags += [f"--xla_force_host_platform_device_count={command.devices}"]
        flags += [f"--xla_dump_to={folder / 'programs'}", "--xla_dump_hlo_as_text"]
    unset = ("LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(tree),
        "TPU_SKIP_MDS_QUERY": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XLA_FLAGS": " ".join(flags),
    }


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path
