"""`python -m mmrlhf_jax.sharding.jobset LAUNCH NAME IMAGE CONFIG ...`: the JobSet manifest of a run on GKE.

One replicated job per slice, one pod per host. A pod that ends with a status to go on from (`exits.RESTART`) restarts
the whole set; any other failure ends it.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding.accelerators import Accelerator, accelerator
from mmrlhf_jax.sharding.exits import RESTART

GKE_TPU = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
GKE_GPU = {"h100": "nvidia-h100-80gb", "h200": "nvidia-h200-141gb"}
MAX_RESTARTS = 100
GRACE_SECONDS = 300  # from SIGTERM to the end: time for a checkpoint


def manifest(path: str, name: str, image: str, arguments: list[str]) -> dict[str, Any]:
    """UserError for a launch file that names no accelerator."""
    launch = config.load_launch(path)
    if launch.accelerator is None:
        raise UserError(f"{path}: names no accelerator; a JobSet needs one")
    found = accelerator(launch.accelerator)
    experiment, *options = arguments
    container = {
        "name": "train",
        "image": image,
        "command": ["mmrlhf", "train", experiment, "--launch", path, *options],
        "resources": _devices(found),
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": _node(found),
        "containers": [container],
    }
    job = {
        "parallelism": found.hosts,
        "completions": found.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                # Not ours to go on from: the set must not repeat it.
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "train", "operator": "NotIn", "values": [0, *RESTART]},
                }
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": MAX_RESTARTS,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "slice", "replicas": launch.slices, "template": {"spec": job}}],
        },
    }


def _devices(found: Accelerator) -> dict[str, Any]:
    count = {"google.com/tpu" if found.is_tpu else "nvidia.com/gpu": min(found.chips, found.chips_per_host)}
    return {"requests": count, "limits": dict(count)}


def _node(found: Accelerator) -> dict[str, str]:
    generation = found.name.split("-")[0]
    if found.is_tpu:
        kind = {"cloud.google.com/gke-tpu-accelerator": GKE_TPU[generation]}
        return kind | {"cloud.google.com/gke-tpu-topology": found.topology}
    return {"cloud.google.com/gke-accelerator": GKE_GPU[generation]}


def main() -> None:
    try:
        path, name, image, *arguments = sys.argv[1:]
        print(yaml.safe_dump(manifest(path, name, image, arguments), sort_keys=False), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
