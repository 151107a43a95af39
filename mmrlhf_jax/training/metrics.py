"""The logs of a run: `metrics.jsonl` (one object per line, for programs) and TensorBoard (for people)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.errors import UserError, shown
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import read_bytes
from mmrlhf_jax.growing_file import GrowingFile
from mmrlhf_jax.sharding.agreement import first_process
from mmrlhf_jax.training.event_file import EventFile

Figure = float | int | list | None  # a number (null if it is not finite), or a histogram's list


class MetricsLog:
    """Appends to the run's logs. On resume, lines after the restored step are removed, so that no step appears twice.

    With `writes` False nothing is written; only the first process of a run writes. `wandb` is a Weights & Biases project to log
    to as well, `settings` the configuration to show there.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        resume_step: int = 0,
        wandb: str | None = None,
        settings: Mapping | None = None,
        writes: bool = True,
    ):
        self._writes = writes
        self.found: dict[str, float] = {}  # the last train-step line (one with a loss) of earlier attempts
        self.kept: dict[str, float] = {}  # the last such line up to `resume_step`
        if not writes:
            return
        directory = epath.Path(directory)
        retried(lambda: directory.mkdir(parents=True, exist_ok=True), f"{directory}")
        self._path, found = directory / "metrics.jsonl", read_metrics(directory)
        kept = [row for row in found if row["step"] <= resume_step]
        self.found, self.kept = (next((r for r in reversed(rows) if "loss" in r), {}) for rows in (found, kept))
        # The file is truncated only when the first line is written; a run that stops before leaves it unchanged.
        self._text = "".join(strict_json.dumps(row) + "\n" for row in kept)
        self._file: GrowingFile | None = None
        self._board = EventFile(directory / "tensorboard", resume_step + 1)
        self._wandb = None if wandb is None else _start_wandb(wandb, directory, settings or {})

    def write(self, step: int, figures: Mapping[str, float | list[float]]) -> None:
        """Write one line. A list is a histogram's shares; its bin edges are the figure `<name>_edges`."""
        if not self._writes:
            return
        scalars = {name: value for name, value in figures.items() if not isinstance(value, list)}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        # A histogram with a value that is not finite is written as null.
        lists = {name: value for name, value in figures.items() if isinstance(value, list) and np.isfinite(value).all()}
        finite |= {name: None for name, value in figures.items() if isinstance(value, list) and name not in lists}
        if self._file is None:
            self._file = GrowingFile(self._path, self._text)
        self._file.write(strict_json.dumps({"step": step} | finite | lists) + "\n")
        plain = {name: value for name, value in finite.items() if value is not None}
        edged = {name: shares for name, shares in lists.items() if f"{name}_edges" in lists}
        histograms = {name: (np.asarray(shares), np.asarray(lists[f"{name}_edges"])) for name, shares in edged.items()}
        self._board.add(step, plain, histograms)
        if self._wandb is not None:
            self._wandb.log(plain, step=step)

    def flush(self) -> None:
        """Return when every line is on storage. Called before a checkpoint, so that no restored step lacks its line."""
        if self._writes and self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if not self._writes:
            return
        if self._file is not None:
            self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def open_log(experiment: config.Experiment, start: int) -> MetricsLog:
    """Open the run's logs to continue after step `start`; only the first process writes."""
    settings = experiment.model_dump(mode="json")
    directory = epath.Path(experiment.run.directory)
    return MetricsLog(directory, resume_step=start, wandb=experiment.run.wandb, settings=settings, writes=first_process())


def _start_wandb(project: str, directory: epath.Path, settings: Mapping):
    """Start a W&B run named like the directory, or resume it if it exists."""
    try:
        import wandb
    except ImportError:
        raise UserError("run.wandb: wandb is not installed; pip install wandb, or leave run.wandb out") from None
    name = directory.name
    return wandb.init(project=project, name=name, id=name, dir=str(directory), resume="allow", config=dict(settings))


def read_metrics(directory: epath.PathLike) -> list[dict[str, Figure]]:
    """All complete lines of a run's metrics, in order. A last line that a kill truncated is left out.

    UserError with the line's number if any other line is not one that `MetricsLog` writes.
    """
    path = epath.Path(directory) / "metrics.jsonl"
    try:
        lines = read_bytes(path).split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = strict_json.loads(line) if line else None
        except (strict_json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            if number < len(lines) - 1:
                raise UserError(f"{path}, line {number}: not JSON; delete the line") from None
            continue
        if line:
            _check_row(row, f"{path}, line {number}")
            rows.append(row)
    return rows


def _check_row(row: Any, where: str) -> None:
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise UserError(f"{where}: {shown(row)} is no object with a whole step; delete the line")
    for name, value in row.items():
        if not isinstance(value, Figure):
            raise UserError(f"{where}: {name} is {shown(value)}, no figure; delete the line")
