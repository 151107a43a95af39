"""Runs of `mmrlhf train` as several processes on this machine, each with several CPU devices, joined over loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmrlhf_jax import config
from mmrlhf_jax.data.templates import CRITIQUE_PROMPT, SYSTEM
from mmrlhf_jax.quickstart.tokenizer import train_tokenizer
from mmrlhf_jax.training import loop
from tests import ranked, tiny

ROOT = Path(__file__).parents[2]
RANKS = [(1, 2), (1, 2, 3), (1, 1, 2), (2, 1), (1, 2, 2), (1, 2), (2, 1, 3), (1, 2)]
IMAGES = [[(30, 30)], [(75, 40)], [], [(33, 90)], [(30, 30)], [(60, 31)], [], [(30, 60)]]
# transformers would load torch, which is here for the parity tests; on the hosts of a pod it is not.
WITHOUT_TORCH = (
    "import importlib.util as u; find_spec = u.find_spec;"
    " u.find_spec = lambda name, *package: None if name == 'torch' else find_spec(name, *package); "
)
COMMAND = f"{WITHOUT_TORCH}from mmrlhf_jax.cli import main; main()"


def write_experiment(root: Path, kind: str, **run: Any) -> dict[str, Any]:
    """Model and data in `root`, and the experiment as a dictionary. Widths divide over 8 devices, heads over 2."""
    words = " ".join(ranked.WORDS)
    tokenizer = train_tokenizer([CRITIQUE_PROMPT, f"system\n{SYSTEM}", words, *ranked.WORDS] * 9, 640)
    ids = {f"{name}_token_index": tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("image", "video")}
    raw = tiny.config(text={"vocab_size": len(tokenizer) + len(tokenizer) % 2}, **ids)
    model = root / "model"
    if not model.exists():
        tokenizer.save_pretrained(tiny.checkpoint(model, raw, reward_head=kind == "reward_model", with_tokenizer=False))
        ranked.write(root / "data", RANKS, IMAGES)
    objective = {"kind": kind} | ({"reference": "live"} if kind == "preference" else {})
    head = {"reward_head": "tanh"} if kind == "reward_model" else {}
    return {
        "model": {"path": str(model), "dtype": "float32", "remat": "full", **head},
        "data": {"path": str(root / "data" / "records.jsonl")},
        "objective": objective,
        "optimizer": {"learning_rate": 1e-4},
        "batch": {"rows": 8, "slots": 768 if kind == "reward_model" else 256, "logprob_chunk": 16},
        "run": {"seed": 3, "steps": 20, "checkpoint_every": 1000, **run},
    }


def mmrlhf(process: int) -> list[str]:
    """The command line of the program, for every process of a launch."""
    return [sys.executable, "-c", COMMAND]


def start(
    folder: Path,
    experiment: Mapping[str, Any],
    mesh: Mapping[str, Any],
    processes: int,
    devices: int,
    *,
    heartbeat: int = 40,
    command: Callable[[int], list[str]] = mmrlhf,
) -> list[subprocess.Popen]:
    """Start `mmrlhf train` in that many processes. Their output goes to `folder/process-N.log`.

    `command` gives, by the number of the process, the program that is started in the place of `mmrlhf`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(dict(experiment)))
    launch: dict[str, Any] = {"mesh": dict(mesh)}
    if processes > 1:
        launch["distributed"] = {"initialization_timeout": 120, "heartbeat_timeout": heartbeat}
    (folder / "launch.yaml").write_text(yaml.safe_dump(launch))
    common = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    common["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # attempts of a run share their programs, as they would on a pod
    if processes > 1:
        common |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    arguments = ["train", str(folder / "experiment.yaml"), "--launch", str(folder / "launch.yaml")]
    started = []
    for process in range(processes):
        with (folder / f"process-{process}.log").open("a") as log:
            environment = os.environ | common | ({"JAX_PROCESS_ID": str(process)} if processes > 1 else {})
            started.append(subprocess.Popen([*command(process), *arguments], env=environment, stdout=log, stderr=log, cwd=ROOT))
    return started


def train(
    folder: Path, experiment: Mapping[str, Any], mesh: Mapping[str, Any], processes: int, devices: int
) -> dict[int, float]:
    """Run to the end; the loss of every step."""
    experiment = dict(experiment) | {"run": experiment["run"] | {"directory": str(folder / "run")}}
    codes = [process.wait(timeout=900) for process in start(folder, experiment, mesh, processes, devices)]
    assert codes == [0] * processes, output(folder)
    return losses(folder / "run")


def train_here(folder: Path, experiment: Mapping[str, Any]) -> dict[int, float]:
    """As `train` on one device, without starting a process for it."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment = dict(experiment) | {"run": experiment["run"] | {"directory": str(folder / "run")}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    loop.train(config.load_experiment(folder / "experiment.yaml"), config.Launch(mesh=config.Mesh(fsdp=1)))
    return losses(folder / "run")


def losses(run: Path) -> dict[int, float]:
    """The loss of every step. Lines of held-out figures have none."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def output(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("process-*.log")))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
