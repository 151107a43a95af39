"""One pass of a model over a data set: log-probs, lengths and rewards per response."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from flax import nnx

from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.data.stream import Rows, batches
from mmrlhf_jax.faults import Unavailable, first_line
from mmrlhf_jax.files import read_sound_arrays, write_arrays
from mmrlhf_jax.inference.forward import forward
from mmrlhf_jax.objectives import Outputs, target_counts
from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.sharding.agreement import first_reads
from mmrlhf_jax.sharding.feed import feed, fetched, own_rows, whole


def make_scoring_step(graphdef: nnx.GraphDef, *, chunk: int):
    """A jitted `(params, frozen, batch) -> (Outputs, number of target tokens float32[B, R])`."""

    def scoring_step(params: nnx.State, frozen: nnx.State, batch: RowBatch) -> tuple[Outputs, jax.Array]:
        outputs = forward(nnx.merge(graphdef, params, frozen), batch, chunk=chunk)
        return outputs, target_counts(batch.responses, batch.ends.shape[1])

    return jax.jit(scoring_step)


# Seconds between two saves of partial results; a kill loses at most so much work.
KEEP_SECONDS = 60.0


def score_responses(
    step,
    params,
    frozen,
    rows: Rows,
    *,
    batch_rows: int,
    mesh,
    description: str,
    partial: epath.Path | None = None,
    keep_seconds: float = KEEP_SECONDS,
    workers: int = 0,
    at_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Run every row once. Returns `logps`, `lengths` and `rewards`, float32[responses] each, NaN for responses in no row.

    With `partial` the pass resumes an interrupted one; the file's name must depend on everything that numbers and order of rows
    depend on. `at_batch` is called with the number of every batch; `workers` is passed to `batches`.
    """
    count = rows.count(1)
    steps = -(-count // batch_rows)
    found = {name: np.full(rows.index.responses, np.nan, np.float32) for name in ("logps", "lengths", "rewards")}
    start = 0
    stored = _kept_pass(partial, found, steps) if partial is not None else None
    if stored is not None:
        start, found = stored
        say(f"{description}: {start} of {steps} batches were done before")
    progress, kept = Progress(description, steps - start), time.monotonic()
    settings = dict(batch_rows=batch_rows, steps=steps, total=count, start=start, workers=workers)

    def results():
        with contextlib.closing(batches(rows, mine=own_rows(mesh, batch_rows), **settings)) as stream:
            for number, batch in enumerate(feed(stream, mesh), start + 1):
                at_batch(number)
                outputs, lengths = step(params, frozen, batch)
                values = {"logps": outputs.logps, "lengths": lengths, "rewards": outputs.rewards}
                yield whole((batch.response_ids, values), mesh)

    for done, (ids, values) in enumerate(fetched(results()), start + 1):
        for name, value in values.items():
            found[name][ids[ids >= 0]] = value[ids >= 0]
        progress.update()
        if partial is not None and jax.process_index() == 0 and time.monotonic() - kept >= keep_seconds:
            keep_arrays(partial, steps=np.asarray(done), **found)
            kept = time.monotonic()
    return found


def _kept_pass(partial: epath.Path, empty: dict[str, np.ndarray], steps: int) -> tuple[int, dict[str, np.ndarray]] | None:
    """(number of batches done, their results) of an interrupted pass; None if there is none. The first process reads the file;
    all processes get its result."""

    def read() -> dict[str, np.ndarray] | None:
        stored = read_sound_arrays(partial) or {}
        done = int(stored.pop("steps", -1))
        sound = 0 <= done <= steps and {n: x.shape for n, x in stored.items()} == {n: x.shape for n, x in empty.items()}
        return stored | {"steps": np.asarray(done)} if sound else None

    stored = first_reads(read)
    return None if stored is None else (int(stored.pop("steps")), {name: values.copy() for name, values in stored.items()})


def keep_arrays(path: epath.Path, **arrays: np.ndarray) -> None:
    """Write arrays that can be computed again; a failure is reported, and does not end the run."""
    try:
        write_arrays(path, **arrays)
    except (OSError, Unavailable) as error:
        say(f"{path}: reference log-probs cannot be kept there ({first_line(error)})")
