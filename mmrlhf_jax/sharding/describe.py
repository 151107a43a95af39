"""`python -m mmrlhf_jax.sharding.describe FILE`: what a launch file names, as shell assignments, for the launchers."""

from __future__ import annotations

import shlex
import sys

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.sharding.accelerators import accelerator


def describe(path: str) -> dict[str, str]:
    """UserError for a launch file that names no accelerator: there is nothing to ask a scheduler for."""
    launch = config.load_launch(path)
    if launch.accelerator is None:
        raise UserError(f"{path}: names no accelerator to start on; launch/local.sh uses the devices that are here")
    found = accelerator(launch.accelerator)
    return {
        "accelerator": found.name,
        "generation": found.name.split("-")[0],
        "gcloud_type": found.gcloud or "",
        "topology": found.topology or "",
        "chips": str(found.chips),
        "hosts": str(found.hosts),
        "slices": str(launch.slices),
    }


def main() -> None:
    try:
        for name, value in describe(sys.argv[1]).items():
            print(f"{name}={shlex.quote(value)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
