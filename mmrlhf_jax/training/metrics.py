"""Where figures go: `metrics.jsonl` (one object per line, for programs) and TensorBoard (for people)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from etils import epath

from mmrlhf_jax.errors import UserError


class MetricsLog:
    """Appends to the run's logs. On resume, lines from beyond the restored step are cut, so that no step appears twice."""

    def __init__(self, directory: epath.PathLike, *, resume_step: int = 0):
        from tensorboardX import SummaryWriter  # imports protobuf: only where something is logged

        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(directory) if row["step"] <= resume_step]
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._file.write(json.dumps({"step": step} | finite) + "\n")
        self._file.flush()
        for name, value in figures.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(directory: epath.PathLike) -> list[dict[str, float]]:
    """All complete lines of a run's metrics, in order. A last line torn by a kill is left out."""
    path = epath.Path(directory) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line else []
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise UserError(f"{path}, line {number}: not JSON; delete the line") from None
    return rows
