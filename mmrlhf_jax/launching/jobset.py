"""`python -m mmrlhf_jax.launching.jobset LAUNCH NAME IMAGE CLAIM:PATH CONFIG ...` prints the JobSet manifest of a run on GKE.

There is one replicated job per slice (or GPU host), and one pod per host. All pods are restarted if one exits with a status of
`exits.RESTART` or its node is taken away; any other failure ends the JobSet.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import Accelerator, accelerator
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.exits import RESTART
from mmrlhf_jax.launching.describe import directories
from mmrlhf_jax.sharding.distributed import COORDINATOR, PROCESS, PROCESSES

GKE_TPU = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
GKE_GPU = {
    "l4": "nvidia-l4",
    "a100": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
DRIVER = "/usr/local/nvidia/lib64"  # where GKE mounts the driver's libraries, and where images not made by NVIDIA do not look
MAX_RESTARTS = 100
GRACE_SECONDS = 300  # from SIGTERM to SIGKILL: time for a checkpoint
JOB = "slice"
PORT = 8476


def manifest(path: str, name: str, image: str, claim: str, arguments: list[str]) -> dict[str, Any]:
    """The JobSet manifest. `claim` is `CLAIM:/PATH`, a PersistentVolumeClaim and its mount path, or empty. `arguments` are the
    experiment and options of `mmrlhf train`.

    UserError if the launch file names no accelerator or one that GKE does not have, or if the experiment uses a directory that
    no volume provides.
    """
    launch = config.load_launch(path)
    if launch.accelerator is None:
        raise UserError(f"{path}: names no accelerator; a JobSet needs one")
    found = accelerator(launch.accelerator)
    experiment, *options = arguments
    volumes = _volumes(claim, directories(experiment, options))
    variables = [] if found.is_tpu else [{"name": "LD_LIBRARY_PATH", "value": DRIVER}]
    variables += [] if found.is_tpu or launch.slices == 1 else _processes(name, launch.slices)
    container = {
        "name": "train",
        "image": image,
        # `args`, not `command`: the image's entry point is an init process that forwards signals.
        "args": ["mmrlhf", "train", experiment, "--launch", path, *options],
        **({"env": variables} if variables else {}),
        "resources": _devices(found),
        "volumeMounts": [{"name": volume["name"], "mountPath": where} for where, volume in volumes.items()],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": _node(found),
        "containers": [container],
        "volumes": list(volumes.values()),
    }
    job = {
        "parallelism": found.hosts,
        "completions": found.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _pod_failures()},
        "template": {"spec": pod},
    }
    # A TPU slice is a node pool, which must not be shared between jobs. A pod on a GPU node has its devices for itself.
    exclusive = {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}}
    ends = {"name": "cannot_go_on", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name, **(exclusive if found.is_tpu else {})},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": MAX_RESTARTS, "rules": [ends]},
            "replicatedJobs": [{"name": JOB, "replicas": launch.slices, "template": {"spec": job}}],
        },
    }


def _pod_failures() -> list[dict[str, Any]]:
    """Rules of the pod failure policy; the first that matches a failed pod applies.

    A pod whose node is taken away may end with any status. `Count` exceeds `backoffLimit: 0`, so the job fails for a reason
    other than `PodFailurePolicy`, and JobSet restarts all pods at once. `Ignore` would start a single new pod, which could not
    join the others, because they still wait for the old one; a minute later they would exit with a status that restarts all
    pods anyway.
    """
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    go_on = sorted({0, *RESTART})  # Kubernetes requires the list to be sorted
    return [
        {"action": "Count", "onPodConditions": [disrupted]},
        # Any other status is an error that a restart would only repeat.
        {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "NotIn", "values": go_on}},
    ]


def _processes(name: str, slices: int) -> list[dict[str, Any]]:
    """Environment variables by which the processes on GPU hosts find each other; on TPUs libtpu knows. JobSet gives every pod a
    stable host name."""
    job_index = {"fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/job-index']"}}
    return [
        {"name": COORDINATOR, "value": f"{name}-{JOB}-0-0.{name}:{PORT}"},
        {"name": PROCESSES, "value": str(slices)},
        {"name": PROCESS, "valueFrom": job_index},
    ]


def _volumes(claim: str, needed: list[str]) -> dict[str, dict[str, Any]]:
    """Volumes by mount path. UserError if `claim` is malformed or a `needed` directory is in no volume.

    /dev/shm gets a volume, because Grain's workers pass batches through it and a pod's default is 64 MB."""
    volumes: dict[str, dict[str, Any]] = {"/dev/shm": {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}}
    name, _, where = claim.partition(":")
    if claim and not (name and where.startswith("/")):
        raise UserError(f"--claim {claim}: is no CLAIM:/PATH")
    if claim:
        volumes[where] = {"name": "claim", "persistentVolumeClaim": {"claimName": name}}
    for directory in needed:
        if not claim or not f"{directory}/".startswith(f"{where.rstrip('/')}/"):
            raise UserError(
                f"{directory} would be lost with its pod: use gs://..., or mount a volume there with --claim CLAIM:/PATH"
            )
    return volumes


def _devices(found: Accelerator) -> dict[str, Any]:
    count = {"google.com/tpu" if found.is_tpu else "nvidia.com/gpu": min(found.chips, found.chips_per_host)}
    return {"requests": count, "limits": dict(count)}


def _node(found: Accelerator) -> dict[str, str]:
    generation = found.name.split("-")[0]
    if found.is_tpu:
        kind = {"cloud.google.com/gke-tpu-accelerator": GKE_TPU[generation]}
        return kind | {"cloud.google.com/gke-tpu-topology": found.topology}
    if generation not in GKE_GPU:
        raise UserError(f"{found.name}: GKE has no nodes with this GPU; it has those of {', '.join(GKE_GPU)}")
    return {"cloud.google.com/gke-accelerator": GKE_GPU[generation]}


def main() -> None:
    try:
        path, name, image, claim, *arguments = sys.argv[1:]
        print(yaml.safe_dump(manifest(path, name, image, claim, arguments), sort_keys=False), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
