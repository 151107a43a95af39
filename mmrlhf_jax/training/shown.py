"""What pages of other things show of a run of training: its curves, its time and its configuration."""

from __future__ import annotations

from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.pages.suite import Training
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.directory import CONFIG_FILE
from mmrlhf_jax.training.goodput import NAME, PARTS
from mmrlhf_jax.training.metrics import read_metrics
from mmrlhf_jax.training.page import time_spent_of


def shown_run(directory: epath.PathLike) -> Training:
    """A run from the files in its directory, finished or not. UserError if one of them is not readable."""
    directory = epath.Path(directory)
    experiment, rows = config.load_experiment(directory / CONFIG_FILE), read_metrics(directory)
    method, _ = task_of(experiment.objective).describe()
    said = f"{experiment.model.path} becomes {method}, from {experiment.data.named}."
    needed = [f"{NAME}/{name}" for name in ("attempt", "seconds", "productive", *(f"{part}_seconds" for part in PARTS))]
    last = next((row for row in reversed(rows) if all(row.get(name) is not None for name in needed)), None)
    time = None if last is None or not last[f"{NAME}/seconds"] else time_spent_of(last)
    return Training(directory.name, experiment, rows, said, time)
