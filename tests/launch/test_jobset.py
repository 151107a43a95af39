"""The JobSet manifest: what Kubernetes accepts, and what becomes of a set whose pods end."""

from __future__ import annotations

import pytest
import yaml

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import RESTART
from mmrlhf_jax.launching.jobset import manifest
from tests.launch.launchers import BUCKET, EXPERIMENT, LAUNCHES, ROOT, accepts, dry_run

RUNNABLE = [path for path in LAUNCHES if accepts("jobset.sh", path)]
ON_DISK = ("--set", "run.directory=/mnt/run", "--set", "data.path=/mnt/data", "--set", "data.rewards=null")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def model():
    reason = "pip install kubeflow-trainer-api"
    return pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set", reason=reason).JobsetV1alpha2JobSet


def job_of(made: dict) -> dict:
    (job,) = made["spec"]["replicatedJobs"]
    return job


def container_of(made: dict) -> dict:
    (container,) = job_of(made)["template"]["spec"]["template"]["spec"]["containers"]
    return container


def names_of(container: dict) -> set[str]:
    """Of its environment variables."""
    return {variable["name"] for variable in container.get("env", ())}


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_the_manifest_has_the_types_and_names_of_the_published_schema(path, model):
    """The schema's own models, generated from the JobSet and Kubernetes APIs: what they do not know does not come back."""
    made = manifest(str(path), "mmrlhf", "I", "claim:/mnt", [EXPERIMENT, *ON_DISK])
    assert model.from_dict(made).to_dict() == made


def test_the_schemas_models_notice_a_wrong_name_and_a_wrong_type(model):
    made = manifest("launch/v6e-32.yaml", "mmrlhf", "I", "", [EXPERIMENT, *BUCKET])
    spec = job_of(made)["template"]["spec"]
    spec["podFailurePolicies"] = spec["podFailurePolicy"]
    assert model.from_dict(made).to_dict() != made
    spec["podFailurePolicy"]["rules"][1]["action"] = "FailAll"
    with pytest.raises(ValueError, match="FailJob"):
        model.from_dict(made)


def test_the_launcher_prints_the_manifest_with_a_job_per_slice_and_a_pod_per_host():
    made = yaml.safe_load("\n".join(dry_run("jobset.sh", "launch/v6e-32x2.yaml")))
    assert made == manifest("launch/v6e-32x2.yaml", "mmrlhf", "I", "", [EXPERIMENT, *BUCKET])
    job = job_of(made)
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (8, 8, "Indexed")
    container = container_of(made)
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert "command" not in container, "it would replace the image's init"


def outcome(spec: dict, status: int, conditions: tuple[str, ...] = ()) -> str:
    """What Kubernetes does about a failed pod, by the rules of `podFailurePolicy`: the first that matches, else Count."""
    for rule in spec["podFailurePolicy"]["rules"]:
        if any(pattern["type"] in conditions for pattern in rule.get("onPodConditions", ())):
            return rule["action"]
        if "onExitCodes" in rule and status not in rule["onExitCodes"]["values"]:
            return rule["action"]
    return "Count"


def test_a_pod_that_can_go_on_or_lost_its_node_restarts_the_set_and_any_other_ends_it():
    """A counted failure exceeds the backoff limit, which JobSet restarts on; a failed job by policy it ends on."""
    made = manifest("launch/v6e-32.yaml", "mmrlhf", "I", "", [EXPERIMENT, *BUCKET])
    spec = job_of(made)["template"]["spec"]
    assert spec["backoffLimit"] == 0
    (rule,) = made["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert {outcome(spec, status) for status in RESTART} == {"Count"}
    assert {outcome(spec, status) for status in (1, 2, 139)} == {"FailJob"}
    assert {outcome(spec, status, ("DisruptionTarget",)) for status in (1, 2, 137, 143)} == {"Count"}


def test_statuses_are_in_the_order_that_kubernetes_demands():
    made = manifest("launch/v6e-32.yaml", "mmrlhf", "I", "", [EXPERIMENT, *BUCKET])
    values = job_of(made)["template"]["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert values == sorted(set(values)) == sorted({0, *RESTART})


def test_gpu_hosts_find_each_other_by_the_names_that_jobset_gives_their_pods():
    made = manifest("launch/h100-8x4.yaml", "run1", "I", "", [EXPERIMENT, *BUCKET])
    variables = {variable["name"]: variable for variable in container_of(made)["env"]}
    first = f"run1-{job_of(made)['name']}-0-0.{made['spec']['network']['subdomain']}"
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"].rsplit(":", 1)[0] == first
    assert variables["JAX_NUM_PROCESSES"]["value"] == str(job_of(made)["replicas"]) == "4"
    field = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['jobset.sigs.k8s.io/job-index']"
    assert "annotations" not in made["metadata"], "four hosts need not be four node pools"


@pytest.mark.parametrize(
    ("name", "node", "cards"),
    [
        ("l4-1", "nvidia-l4", 1),
        ("h100-1", "nvidia-h100-80gb", 1),
        ("a100-8", "nvidia-a100-80gb", 8),
        ("h100-8x4", "nvidia-h100-80gb", 8),
        ("h200-8", "nvidia-h200-141gb", 8),
        ("b200-8", "nvidia-b200", 8),
    ],
)
def test_pods_of_gpu_hosts_ask_for_the_cards_by_the_names_of_gke(name, node, cards):
    """Names as GKE's documentation lists them for its machine types."""
    made = manifest(f"launch/{name}.yaml", "run1", "I", "", [EXPERIMENT, *BUCKET])
    spec = job_of(made)["template"]["spec"]
    assert spec["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-accelerator": node}
    assert container_of(made)["resources"] == {key: {"nvidia.com/gpu": cards} for key in ("requests", "limits")}
    assert spec["parallelism"] == spec["completions"] == 1, "one process drives all cards of a host"
    assert {"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"} in container_of(made)["env"], "of GKE's driver"


@pytest.mark.parametrize("name", ["h100-1", "h100-8", "v6e-32x2"])
def test_a_single_host_and_tpus_need_no_coordinator(name):
    made = manifest(f"launch/{name}.yaml", "run1", "I", "", [EXPERIMENT, *BUCKET])
    assert not {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} & names_of(container_of(made))


def test_pods_have_shared_memory_and_time_for_a_checkpoint():
    made = manifest("launch/v6e-32.yaml", "mmrlhf", "I", "", [EXPERIMENT, *BUCKET])
    pod = job_of(made)["template"]["spec"]["template"]["spec"]
    (volume,), (mount,) = pod["volumes"], container_of(made)["volumeMounts"]
    assert (volume["name"], volume["emptyDir"]) == (mount["name"], {"medium": "Memory"})
    assert mount["mountPath"] == "/dev/shm"
    assert pod["terminationGracePeriodSeconds"] == 300


def test_a_run_on_a_disk_needs_a_claim_that_is_mounted_there():
    with pytest.raises(UserError, match=r"/mnt/data would be lost with its pod.*--claim"):
        manifest("launch/v6e-32.yaml", "mmrlhf", "I", "", [EXPERIMENT, *ON_DISK])
    with pytest.raises(UserError, match="would be lost"):
        manifest("launch/v6e-32.yaml", "mmrlhf", "I", "disk:/mn", [EXPERIMENT, *ON_DISK])
    with pytest.raises(UserError, match="no CLAIM:/PATH"):
        manifest("launch/v6e-32.yaml", "mmrlhf", "I", "disk", [EXPERIMENT, *ON_DISK])
    made = manifest("launch/v6e-32.yaml", "mmrlhf", "I", "disk:/mnt", [EXPERIMENT, *ON_DISK])
    volumes = job_of(made)["template"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "claim", "persistentVolumeClaim": {"claimName": "disk"}} in volumes
    assert {"name": "claim", "mountPath": "/mnt"} in container_of(made)["volumeMounts"]


def test_a_pod_per_host_asks_for_all_its_chips():
    for path in RUNNABLE:
        launch = config.load_launch(path)
        found = accelerator(launch.accelerator)
        made = manifest(str(path), "mmrlhf", "I", "", [EXPERIMENT, *BUCKET])
        (chips,) = container_of(made)["resources"]["limits"].values()
        pods = job_of(made)["replicas"] * job_of(made)["template"]["spec"]["parallelism"]
        assert chips * pods == found.chips * launch.slices
