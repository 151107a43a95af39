"""`python -m mmrlhf_jax.launching.describe LAUNCH [CONFIG ...]` prints shell assignments for the launch scripts.

For a launch file it prints what to request from a scheduler; for an experiment, the directories that a container must mount.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from mmrlhf_jax import config
from mmrlhf_jax.accelerators import accelerator
from mmrlhf_jax.data.mixture import Part, find_parts, sets
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.hub_id import is_hub_id

CACHE = "JAX_COMPILATION_CACHE_DIR"


def describe(path: str) -> dict[str, str]:
    """Shell variables for requesting a launch file's devices. UserError if it names no accelerator."""
    launch = config.load_launch(path)
    if launch.accelerator is None:
        raise UserError(f"{path}: names no accelerator to start on; launch/local.sh uses the devices that are here")
    found = accelerator(launch.accelerator)
    cache = launch.environment.get(CACHE, "")
    return {
        "accelerator": found.name,
        "platform": "tpu" if found.is_tpu else "gpu",
        "generation": found.name.split("-")[0],
        "gcloud_type": found.gcloud or "",
        "topology": found.topology or "",
        "chips": str(found.chips),
        "hosts": str(found.hosts),
        "slices": str(launch.slices),
        "cache": cache if cache.startswith("/") else "",
    }


def directories(path: str, options: Sequence[str]) -> list[str]:
    """The local directories that an experiment reads and writes, for containers to mount; gs:// paths need none.

    `options` are the command-line options of `mmrlhf train` after the experiment. UserError for a relative path, which would
    lie inside the container, and for an option that the trainer does not have.
    """
    experiment, written = config.load_experiment(path, _overrides(options)), config.read_experiment(path, _overrides(options))
    if away := next(_home_paths(written), None):
        raise UserError(f"{path}: {away} is another directory in a container; write it out, or give a gs:// path")
    data = experiment.data
    try:
        parts = find_parts(sets(data.path))  # expands patterns and mixture files
    except UserError:  # a mixture file that exists only on the hosts
        parts = [Part(part) for part in data.paths]
    named = [("run.directory", experiment.run.directory)]
    named += [(key, value) for part in parts for key, value in (("data.path", part.path), ("data.path", part.media_root))]
    named += [(f"data.{key}", getattr(data, key)) for key in config.DATA_PLACES]
    named += [] if is_hub_id(experiment.model.path) else [("model.path", experiment.model.path)]
    found = []
    for key, value in named:
        if value is None or "://" in value:
            continue
        if not value.startswith("/"):
            raise UserError(
                f"{path}: {key} is {value}, which a container does not keep: --set {key}=gs://BUCKET/{value},"
                " or the absolute path of a directory that all hosts share"
            )
        file = key.startswith("data.") and PurePosixPath(value).suffix
        found.append(str(PurePosixPath(value).parent) if file else value)
    return sorted(set(found))


def _home_paths(value: Any) -> Iterator[str]:
    """Yield the paths among an experiment's values that begin with `~`."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _home_paths(inner)
    elif isinstance(value, str) and value.startswith("~"):
        yield value


def _overrides(options: Sequence[str]) -> list[str]:
    """The values of `--set` among the trainer's options."""
    rest, found = list(options), []
    while rest:
        option = rest.pop(0)
        if option == "--set" and rest:
            found.append(rest.pop(0))
        elif option.startswith("--set="):
            found.append(option.removeprefix("--set="))
        elif option == "--fresh":
            raise UserError("--fresh would remove the checkpoints at every restart: run it once by hand, without a launcher")
        elif option != "--resume":
            raise UserError(f"{option}: `mmrlhf train` has no such option here; it takes --set key=value")
    return found


def main() -> None:
    try:
        path, *experiment = sys.argv[1:]
        for name, value in describe(path).items():
            print(f"{name}={shlex.quote(value)}")
        if experiment:
            print(f"mounts=({shlex.join(directories(experiment[0], experiment[1:]))})")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
