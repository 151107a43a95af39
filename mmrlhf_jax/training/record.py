"""Records a finished step: reads its figures, computes rates and utilisation, writes the logs, handles a bad step."""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.rows import RowBatch, by_name, from_names
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Unavailable, first_line
from mmrlhf_jax.files import read_arrays, write_arrays
from mmrlhf_jax.models.family import ModelConfig
from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.sharding.feed import fetch
from mmrlhf_jax.tasks import task_of
from mmrlhf_jax.training.goodput import Goodput
from mmrlhf_jax.training.guard import GOOD, stops
from mmrlhf_jax.training.metrics import MetricsLog
from mmrlhf_jax.training.work import Work, peak_flops, useful_flops

STATISTICS = "statistics/"  # how the names of running statistics begin in a saved batch


class Pending:
    """A step whose figures have not been read from the device."""

    def __init__(self, step: int, batch: RowBatch):
        self.step, self.batch = step, batch
        self.figures: dict[str, jax.Array] = {}


class Recorder:
    """What `record` needs beside the step: the logs, and a clock that measures from one finished step to the next.

    `rate` maps a number of applied updates to the learning rate, `epochs` a number of steps to epochs.
    """

    def __init__(
        self,
        experiment: config.Experiment,
        model: ModelConfig,
        log: MetricsLog,
        directory: epath.Path,
        *,
        steps: int,
        rate: Callable[[int], float],
        epochs: Callable[[int], float],
        goodput: Goodput,
        records: Sequence[RankedRecord],
    ):
        self.experiment, self.model, self.log, self.directory = experiment, model, log, directory
        self.rate, self.epochs, self.goodput, self.records = rate, epochs, goodput, records
        self.progress = Progress(f"training {directory.name}", steps)
        self.peak = peak_flops()
        self.num_tokens = log.kept.get("num_tokens", 0.0)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude work between two steps (evaluation, a checkpoint) from the next step's time."""
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last step was finished."""
        last, self._last = self._last, time.monotonic()
        return self._last - last

    def throughput(self, work: Work, seconds: float) -> dict[str, float]:
        """Rates per second that do not count padding, and the FLOP utilisation if the devices' peak is known."""
        flops = useful_flops(work, self.model, self.experiment)
        rates = {"tokens_per_second": work.tokens / seconds, "pairs_per_second": work.pairs / seconds}
        rates |= {"seconds": seconds, "tokens": work.tokens, "useful_tflops_per_second": flops / seconds / 1e12}
        return rates if self.peak is None else rates | {"flop_utilisation": flops / seconds / self.peak}


def record(done: Pending, recorder: Recorder, *, always: bool = False) -> None:
    """Write a finished step's figures, every `log_every` steps or `always`. Reports a bad step; if the guard stops there, saves
    the batch for replay and raises UserError.

    All figures are read at once. This waits for the step to end, so another one should be running meanwhile; nothing here
    puts work on the devices.
    """
    experiment = recorder.experiment
    figures = {name: as_number(value) for name, value in jax.device_get(done.figures).items()}
    seconds = recorder.lap()
    work = Work(*(figures.pop(f"work/{name}", None) for name in Work._fields))
    status, skipped = int(figures.pop("guard")), int(figures["skipped_steps"])
    if status != GOOD:
        loss, norm = figures["loss"], figures["grad_norm"]
        reason = stops(status, experiment.guard)
        if reason is not None:
            path = recorder.directory / bad_batch_file(done.step)
            # The guard leaves the statistics of a bad step as they were before it, which is what a replay begins with.
            statistics = {name: figures[name] for name in task_of(experiment.objective).statistics}
            save_batch(path, done.step, done.batch, recorder.records, statistics)
            raise UserError(
                f"step {done.step}: {reason} (loss {loss:g}, norm {norm:g}); `mmrlhf replay {path}`"
                " (on the same --launch) shows the batch."
                " Set guard to skip such steps and start the same command again, or start over in another"
                " run.directory with a lower optimizer.learning_rate"
            )
        say(f"step {done.step} is skipped: loss {loss:g}, gradient norm {norm:g}; {skipped} skipped so far")
    recorder.num_tokens += work.tokens
    figures["num_tokens"] = recorder.num_tokens
    figures["epoch"] = recorder.epochs(done.step + 1)
    figures["learning_rate"] = recorder.rate(max(done.step - skipped, 0))
    figures |= recorder.throughput(work, seconds)
    figures |= recorder.goodput.figures()
    if always or (done.step + 1) % experiment.run.log_every == 0:
        recorder.log.write(done.step + 1, figures)
    accuracy = figures.get("rewards/accuracies", figures.get("accuracy"))
    shown = f"loss {figures['loss']:.4f}" + (f", accuracy {accuracy:.3f}" if accuracy is not None else "")
    pairs = figures["pairs_per_second"]  # none where a task learns from single responses
    rates = (f", {pairs:.3g} pairs/s" if pairs else "") + f", {figures['tokens_per_second']:.4g} tokens/s"
    utilisation = figures.get("flop_utilisation")
    recorder.progress.update(shown + rates + (f", {utilisation:.1%} of peak" if utilisation is not None else ""))


def as_number(value: np.ndarray) -> Any:
    """A float, or a list of floats."""
    return np.asarray(value, float).tolist()


def bad_batch_file(step: int | str) -> str:
    return f"bad_batch_step_{step}.npz"


def save_batch(
    path: epath.Path, step: int, batch: RowBatch, records: Sequence[RankedRecord], statistics: Mapping[str, float]
) -> None:
    """Write the global batch of a step as one `.npz` of its fields, in the first process. It also contains, for every response
    of the batch, the id of its record (`groups`) and its number in that record, from 1 (`numbers`), and the running
    `statistics` of the loss before the step."""
    arrays = {name: fetch(value) for name, value in by_name(batch).items()}
    if jax.process_index() == 0:
        owners = [(record.id, i) for record in records for i in range(1, len(record.responses) + 1)]
        found = [[owners[each] if each >= 0 else ("", 0) for each in row] for row in arrays["response_ids"]]
        groups, numbers = (np.asarray([[owner[part] for owner in row] for row in found]) for part in (0, 1))
        try:
            running = {f"{STATISTICS}{name}": np.float32(value) for name, value in statistics.items()}
            write_arrays(path, step=np.asarray(step), groups=groups, numbers=numbers, **running, **arrays)
        except (OSError, Unavailable) as error:  # do not raise: the error to report is the bad step
            say(f"{path}: the batch cannot be saved ({first_line(error)})")


class SavedBatch(NamedTuple):
    """A batch that a run saved at a bad step, with the records of its responses."""

    step: int
    batch: RowBatch
    groups: np.ndarray  # str[B, R]: id of the record of each response
    numbers: np.ndarray  # int[B, R]
    statistics: Mapping[str, float]  # the loss's running statistics before the step


def read_batch(path: epath.PathLike) -> SavedBatch:
    """Read what `save_batch` wrote. UserError if the file is missing, unreadable or not such a batch, or if a running statistic
    in it is not finite."""
    path = epath.Path(path)
    try:
        arrays = read_arrays(path)
        step, groups, numbers = (arrays.pop(name) for name in ("step", "groups", "numbers"))
        running = {name: float(arrays.pop(name)) for name in [*arrays] if name.startswith(STATISTICS)}
        statistics = {name.removeprefix(STATISTICS): value for name, value in running.items()}
        found = SavedBatch(int(step), from_names(arrays), groups, numbers, statistics)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a run that stops at a bad step says where it saved the batch") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path}: not a batch that a run of this version saved") from None
    for name, value in statistics.items():
        if not math.isfinite(value):
            raise UserError(f"{path}: the running statistic {name} is {value}, and no batch can be replayed with it")
    return found
