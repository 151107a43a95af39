"""Running the launchers as a user would, with stand-ins for the tools that they call."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.launching.jobset import GKE_GPU

ROOT = Path(__file__).parents[2]
LAUNCHES = sorted((ROOT / "launch").glob("*.yaml"))
EXPERIMENT = "configs/mmdpo_llava_ov_7b.yaml"
BUCKET = ("--set", "run.directory=gs://b/run", "--set", "data.path=gs://b/data", "--set", "data.rewards=gs://b/r.jsonl")
CLOUD = ("--project", "project", "--zone", "us-central1-a")

# Each launcher with what it cannot do without, but for the launch file.
TPU = {
    "tpu_queued_resource.sh": (*CLOUD, "--image", "I"),
    "tpu_xpk.sh": ("--cluster", "cluster", *CLOUD, "--image", "I"),
    "jobset.sh": ("--image", "I"),
}
GPU = {"slurm.sh": (), "jobset.sh": ("--image", "I")}
EVERY = TPU | GPU | {"local.sh": ()}


def accepts(name: str, launch: Path) -> bool:
    """Whether this launcher starts on this launch file's accelerator."""
    found = config.load_launch(launch)
    if found.accelerator is None:
        return name == "local.sh"
    if accelerator(found.accelerator).is_tpu:
        return name in TPU
    if name == "local.sh":
        return found.slices == 1
    return name in GPU and (name != "jobset.sh" or found.accelerator.split("-")[0] in GKE_GPU)


# The launchers call Python to read launch files and experiments. Its answer to one command line is kept for the session.
ASKED_ONCE = """#!/bin/bash
for word in "$@"; do
  [[ ! -e $word || $word == "$ROOT"/* || $word == configs/* ]] || exec "$REAL" "$@"
done
kept=$KEPT/$(printf '%q ' "$@" | sha256sum | cut -c -64)
[[ -e $kept ]] || { "$REAL" "$@" > "$kept.new" && mv "$kept.new" "$kept"; } || exit
cat "$kept"
"""


@functools.cache
def python() -> dict[str, str]:
    """The variables under which the launchers find Python."""
    kept = tempfile.mkdtemp(prefix="described-")
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    stand_in = Path(kept) / "python"
    stand_in.write_text(ASKED_ONCE)
    stand_in.chmod(0o755)
    return {"PYTHON": str(stand_in), "REAL": sys.executable, "ROOT": str(ROOT), "KEPT": kept}


def environment(tools: Path | None = None, **variables: str) -> dict[str, str]:
    path = os.environ["PATH"] if tools is None else f"{tools}:{os.environ['PATH']}"
    return os.environ | python() | {"PYTHONPATH": str(ROOT), "PATH": path, "RESTART_SECONDS": "0"} | variables


def launcher(name: str, *arguments: str, status: int = 0, **kwargs) -> list[str]:
    """The lines that a launcher prints: on stdout where it is to end well, else on stderr."""
    command = [str(ROOT / "launch" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**kwargs), cwd=ROOT)
    assert done.returncode == status, done.stderr
    return (done.stdout if status == 0 else done.stderr).splitlines()


def dry_run(name: str, launch: Path | str, *options: str) -> list[str]:
    """What a launcher would run on a launch file."""
    return launcher(name, "--launch", str(launch), *EVERY[name], "--dry-run", EXPERIMENT, *BUCKET, *options)


def stand_in(tools: Path, name: str, body: str) -> None:
    """A tool that is not here, as a bash script."""
    tools.mkdir(exist_ok=True)
    (tools / name).write_text(f"#!/bin/bash\n{body}\n")
    (tools / name).chmod(0o755)


def tool(name: str) -> str | None:
    """Where a real tool is: beside this Python, or on the PATH."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
