"""From a finished step's figures to the logs: rates, utilisation, and what happens after a bad step."""

from __future__ import annotations

import time
import zipfile
from typing import Any

import jax
import numpy as np
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.llava_onevision.config import LlavaOnevisionConfig
from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.training.feed import fetch
from mmrlhf_jax.training.goodput import Goodput
from mmrlhf_jax.training.guard import GOOD, stops
from mmrlhf_jax.training.metrics import MetricsLog
from mmrlhf_jax.training.work import Work, peak_flops, useful_flops


class Pending:
    """A step whose figures are still on the device."""

    def __init__(self, step: int, batch: RowBatch):
        self.step, self.batch = step, batch
        self.figures: dict[str, jax.Array] = {}


class Recorder:
    """What recording needs beside the step: where figures go, and a clock from one finished step to the next."""

    def __init__(
        self,
        experiment: config.Experiment,
        model: LlavaOnevisionConfig,
        log: MetricsLog,
        rate,
        directory: epath.Path,
        *,
        steps: int,
        epoch_rows: int,
        goodput: Goodput,
    ):
        self.experiment, self.model, self.log, self.rate, self.directory = experiment, model, log, rate, directory
        self.epoch_rows, self.goodput = epoch_rows, goodput
        self.progress = Progress(f"training {directory.name}", steps)
        self.peak = peak_flops()
        self.restart_clock()

    def restart_clock(self) -> None:
        """After work between two steps that is not the steps' own: evaluation, a checkpoint."""
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last step was finished."""
        last, self._last = self._last, time.monotonic()
        return self._last - last

    def throughput(self, work: Work, seconds: float) -> dict[str, float]:
        """Rates without padding and, where the devices' peak is known, the share of it that went into useful FLOPs."""
        flops = useful_flops(work, self.model, self.experiment)
        rates = {"tokens_per_second": work.tokens / seconds, "pairs_per_second": work.pairs / seconds}
        rates |= {"seconds": seconds, "tokens": work.tokens, "useful_tflops_per_second": flops / seconds / 1e12}
        return rates if self.peak is None else rates | {"flop_utilisation": flops / seconds / self.peak}


def record(done: Pending, recorder: Recorder) -> None:
    """Write a finished step's figures. A bad step is skipped or stops the run (`guard`), with the batch saved for replay."""
    experiment = recorder.experiment
    figures = {name: as_number(value) for name, value in done.figures.items()}
    seconds = recorder.lap()
    work = Work(*(figures.pop(f"work/{name}") for name in Work._fields))
    status, skipped = int(figures.pop("guard")), int(figures["skipped_steps"])
    if status != GOOD:
        loss, norm = figures["loss"], figures["grad_norm"]
        reason = stops(status, experiment.guard)
        if reason is not None:
            path = recorder.directory / f"bad_batch_step_{done.step}.npz"
            save_batch(path, done.step, done.batch)
            raise UserError(
                f"step {done.step}: {reason} (loss {loss:g}, norm {norm:g}); `mmrlhf replay {path}` shows the batch."
                " Lower optimizer.learning_rate, or set guard to skip such steps"
            )
        say(f"step {done.step} is skipped: loss {loss:g}, gradient norm {norm:g}; {skipped} skipped so far")
    figures["epoch"] = (done.step + 1) * experiment.batch.rows / recorder.epoch_rows
    figures["learning_rate"] = float(recorder.rate(max(done.step - skipped, 0)))
    figures |= recorder.throughput(work, seconds)
    figures |= recorder.goodput.figures()
    if (done.step + 1) % experiment.run.log_every == 0:
        recorder.log.write(done.step + 1, figures)
    accuracy = figures.get("rewards/accuracies", figures.get("accuracy"))
    shown = f"loss {figures['loss']:.4f}" + (f", accuracy {accuracy:.3f}" if accuracy is not None else "")
    rates = f", {figures['pairs_per_second']:.3g} pairs/s, {figures['tokens_per_second']:.4g} tokens/s"
    utilisation = figures.get("flop_utilisation")
    recorder.progress.update(shown + rates + (f", {utilisation:.1%} of peak" if utilisation is not None else ""))


def as_number(value: jax.Array) -> Any:
    """A float, or a list of floats."""
    return float(value) if np.ndim(value) == 0 else [float(x) for x in np.asarray(value)]


def save_batch(path: epath.Path, step: int, batch: RowBatch) -> None:
    """The global batch of a step as one `.npz` of its fields, written by the first process."""
    arrays = {name: fetch(value) for name, value in batch._asdict().items()}
    if jax.process_index() == 0:
        with path.open("wb") as file:
            np.savez_compressed(file, step=step, **arrays)


def read_batch(path: epath.PathLike) -> tuple[int, RowBatch]:
    """(step, batch), as `save_batch` wrote them. UserError where the file is none of its."""
    path = epath.Path(path)
    try:
        with path.open("rb") as file:
            arrays = dict(np.load(file))
        return int(arrays.pop("step")), RowBatch(**arrays)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a run that stops at a bad step says where it saved the batch") from None
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile):
        raise UserError(f"{path}: not a batch that a run saved") from None
