"""A run's `report.html`, from the metrics that the run has written so far."""

from __future__ import annotations

from collections.abc import Mapping

from etils import epath

from mmrlhf_jax import config, strict_json
from mmrlhf_jax.files import exists, read_bytes, write_atomically
from mmrlhf_jax.pages import TimeSpent, run_page
from mmrlhf_jax.progress import say
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.goodput import NAME, PARTS, productive_seconds
from mmrlhf_jax.training.metrics import read_metrics

PAGE = "report.html"
MARGINS = "margins.json"  # the summary of the training pairs' margins (`Task.margin_summary`), if β depends on them


def write_run_page(
    directory: epath.PathLike, experiment: config.Experiment, *, done: int, steps: int, goodput: Mapping[str, float]
) -> None:
    """Write `report.html` into a run directory from its metrics so far, and its margins if it has any. `done` of `steps` steps
    are complete; `goodput` are the current figures of `Goodput`. A failure is reported and does not end the run.
    """
    directory = epath.Path(directory)
    try:
        rows = read_metrics(directory)
        method, source = task_of(experiment.objective).describe()
        facts = dict(method=method, source=source, done=done, steps=steps, time=time_spent_of(goodput))
        if exists(directory / MARGINS):
            facts["margins"] = strict_json.loads(read_bytes(directory / MARGINS))
        page = run_page(directory.name, experiment, rows, **facts)
        write_atomically(directory / PAGE, page.encode("utf-8", "replace"))
    except Exception as error:  # any storage backend's error, or a metrics file that somebody has edited
        say(f"{directory / PAGE} is not written: {str(error).strip() or type(error).__name__}")


def time_spent_of(goodput: Mapping[str, float]) -> TimeSpent:
    """The time of a run from figures of `Goodput`, those of all parts."""
    parts = {part: goodput[f"{NAME}/{part}_seconds"] for part in PARTS} | {"steps": productive_seconds(goodput)}
    return TimeSpent(int(goodput[f"{NAME}/attempt"]), goodput[f"{NAME}/seconds"], parts)
