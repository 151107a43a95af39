"""The names of a run directory's files, the settings that are written there, and what `--fresh` removes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from etils import epath

from mmrlhf_jax import config, sections, strict_json
from mmrlhf_jax.data.pipeline import write_left_out
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import exists, matching, write_atomically
from mmrlhf_jax.progress import say
from mmrlhf_jax.training.page import MARGINS, PAGE
from mmrlhf_jax.training.record import bad_batch_file

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"


def write_settings(experiment: config.Experiment, rows: Rows, margins: Mapping[str, Any] | None, directory: epath.Path) -> None:
    """Write the resolved configuration, the list of data that is left out, and the summary of margins, if there is one, before
    the first step."""
    write_atomically(directory / CONFIG_FILE, sections.resolved(experiment).encode())
    write_left_out(rows.index, directory)
    if margins is not None:
        write_atomically(directory / MARGINS, strict_json.dumps(dict(margins)).encode())


def clear(directory: epath.Path) -> None:
    """Remove an earlier run's checkpoints, TensorBoard files, metrics, report, margins and bad batches from the directory;
    nothing else."""
    for name in (CHECKPOINTS, "tensorboard"):
        if exists(directory / name):
            say(f"--fresh: removing {directory / name}")
            retried(partial((directory / name).rmtree, missing_ok=True), f"{directory / name}")
    for path in [directory / "metrics.jsonl", directory / PAGE, directory / MARGINS, *matching(directory, bad_batch_file("*"))]:
        retried(partial(path.unlink, missing_ok=True), f"{path}")
