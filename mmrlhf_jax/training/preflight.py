"""Checks that run before anything that takes long: settings, mesh, directory, metrics, checkpoints, disk space."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh

from mmrlhf_jax import config
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Fault, Unavailable, fault, reason, retried
from mmrlhf_jax.files import is_remote
from mmrlhf_jax.huggingface.model_config import known_sizes
from mmrlhf_jax.sharding.agreement import first_acts, first_decides, same_everywhere, together
from mmrlhf_jax.sharding.mesh import make_mesh
from mmrlhf_jax.training import held_out
from mmrlhf_jax.training.identity import check_identity, flat
from mmrlhf_jax.training.layout import check_layout, say_overruled, say_waste, with_accumulation
from mmrlhf_jax.training.metrics import read_metrics
from mmrlhf_jax.training.owner import OWNER
from mmrlhf_jax.training.stored import StoredCheckpoints

PROBE_BYTES = 1 << 16
# Sections in which all processes must agree, because they decide what a run does and when; and the settings in them that may
# differ between hosts. Paths of model and data may differ too: their content is compared once it has been read.
DECIDING = {"objective", "trains", "lora", "optimizer", "guard", "batch", "run"}
OWN = ("run.directory", "run.wandb")


def check_launch(experiment: config.Experiment, launch: config.Launch) -> tuple[config.Experiment, Mesh]:
    """(the experiment with `batch.accumulation` set for the launch's mesh, that mesh).

    UserError in all processes if the settings, the model's sizes or the run's directory do not allow the run, or if the
    processes were given different settings, with which they would issue different collectives.
    """

    def check() -> tuple[config.Experiment, Mesh]:
        mesh = make_mesh(launch.mesh.model_dump())
        # This comes before `known_sizes`, which may have to download the model.
        settled = with_accumulation(experiment, launch, mesh.shape)
        sizes = known_sizes(experiment.model.path)
        check_layout(settled, sizes, mesh.shape)
        say_overruled(experiment, launch, mesh.shape)
        say_waste(settled, sizes, mesh.shape)
        check_settings(settled)
        check_directory(epath.Path(experiment.run.directory))
        return settled, mesh

    settled, mesh = together(check)
    settings = flat(settled.model_dump(mode="json", include=DECIDING))
    settings = {name: value for name, value in settings.items() if name not in OWN}
    same_everywhere(settings | {f"mesh.{name}": size for name, size in mesh.shape.items()}, "this launch")
    return settled, mesh


def check_settings(experiment: config.Experiment) -> None:
    """UserError for settings whose mistake would otherwise show only during the run."""
    run = experiment.run
    held_out.check_settings(experiment)
    if run.wandb is not None and "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        raise UserError("run.wandb: wandb is not installed; pip install wandb, or leave run.wandb out")
    if run.steps is not None:
        check_profile(run, run.steps)


def check_profile(run: config.Run, steps: int) -> None:
    if run.profile_at is not None and run.profile_at >= steps:
        raise UserError(f"run.profile_at: the run's steps are 0 to {steps - 1}, so step {run.profile_at} is never traced")


def check_directory(directory: epath.Path) -> None:
    """UserError if files cannot be written to the directory, which need not exist yet. The probe file is removed again.

    Nothing is tried in a directory that another trainer owns. Unavailable if the storage does not answer.
    """
    if (directory / OWNER).exists():
        return
    where = f"run.directory {directory}"
    try:
        retried(lambda: _try_to_write(directory, where), where)
    except (UserError, Unavailable):
        raise
    except Exception as error:  # any storage backend's error
        if not isinstance(error, OSError) and fault(error) not in (Fault.DENIED, Fault.NO_ROOM):
            raise
        raise UserError(f"{where}: nothing can be written there ({reason(error)})") from None


def _try_to_write(directory: epath.Path, where: str) -> None:
    if is_remote(directory):
        # A random name: all hosts try at the same moment, and in containers their process ids are equal.
        probe = directory / f".probe-{uuid.uuid4().hex}"
        probe.write_bytes(b"a run may write here")
        probe.unlink(missing_ok=True)
        return
    there = _nearest(directory)
    if not there.is_dir():
        raise UserError(f"{where}: {there} is a file; choose another directory, or move it away")
    with tempfile.NamedTemporaryFile(dir=there, prefix=".probe-") as probe:
        probe.write(bytes(PROBE_BYTES))
        probe.flush()
        os.fsync(probe.fileno())


def _nearest(directory: epath.Path) -> epath.Path:
    """The directory, or its nearest parent that exists."""
    return directory if directory.exists() or directory == directory.parent else _nearest(directory.parent)


def check_metrics(directory: epath.Path) -> None:
    """UserError if the run's metrics, which are continued, cannot be read."""
    first_acts(lambda: read_metrics(directory))


def check_stored(directory: epath.Path, wanted: Mapping[str, Any]) -> None:
    """UserError if the newest checkpoint belongs to another run than `wanted`, an identity that may be partial.

    A checkpoint that cannot be read is left to `Checkpoints.restore`, which then tries older ones.
    """
    found = first_decides(lambda: _newest_identity(directory))
    if found is not None:
        check_identity(*found, wanted)


def _newest_identity(directory: epath.Path) -> tuple[int, dict[str, Any]] | None:
    stored = StoredCheckpoints(directory)
    step = stored.latest
    try:
        return None if step is None else (step, stored.identity(step))
    except Exception as error:  # any storage backend's error
        if fault(error) is Fault.DAMAGED:
            return None
        raise stored.explained(step, error) from error


def check_room(directory: epath.Path, params, tx: optax.GradientTransformation) -> None:
    """UserError if the disk has no room for one checkpoint of these parameters and their optimizer state."""
    if is_remote(directory):
        return
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, jax.eval_shape(tx.init, params))))
    free = shutil.disk_usage(_nearest(directory)).free
    if free < needed:
        raise UserError(
            f"run.directory {directory}: a checkpoint takes {needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free;"
            " make room, or choose another directory"
        )
