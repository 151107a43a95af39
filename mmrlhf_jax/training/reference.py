"""Reference log-probs: one pass over the data, one number per response, stored under what they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import nnx

from mmrlhf_jax import strict_json
from mmrlhf_jax.data.rows import RowBatch
from mmrlhf_jax.data.stream import Rows, batches
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import Unavailable, first_line, retried
from mmrlhf_jax.files import exists, read_bytes, read_sound_arrays, write_arrays
from mmrlhf_jax.huggingface.tensors import sampled_bytes, tensor_names
from mmrlhf_jax.huggingface.weight_files import find_weight_files
from mmrlhf_jax.progress import Progress, say
from mmrlhf_jax.sharding.agreement import first_acts, first_reads
from mmrlhf_jax.training.feed import feed, fetched, own_rows, whole
from mmrlhf_jax.training.objective import Outputs, forward, target_counts


def make_scoring_step(graphdef: nnx.GraphDef, *, chunk: int):
    """`(params, frozen, batch) -> (Outputs, target counts)`, per response."""

    def scoring_step(params: nnx.State, frozen: nnx.State, batch: RowBatch) -> tuple[Outputs, jax.Array]:
        return forward(nnx.merge(graphdef, params, frozen), batch, chunk=chunk), target_counts(batch)

    return jax.jit(scoring_step)


# Seconds of work that a kill may cost a pass that keeps what it has.
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
    """Run every row once; per response of the data set: `logps`, `lengths`, `rewards` (float32[responses], NaN = not seen).

    With `partial` (a file named after everything the numbers and the order of rows depend on) the pass continues where an
    earlier one was cut off. `at_batch` is called with the number of every batch; `workers` as for `batches`.
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
            _keep(partial, steps=np.asarray(done), **found)
            kept = time.monotonic()
    return found


def reference_logps(
    step,
    params,
    frozen,
    rows: Rows,
    model_fingerprint: str,
    *,
    batch_rows: int,
    mesh,
    cache: epath.Path,
    workers: int = 0,
    at_batch: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """float32[responses], read from `cache` if data, encoder, the groups that are kept and model are as when it was written.

    Responses of groups that `rows` leaves out are NaN. UserError that names the record where another one is not finite.
    """
    content = f"{rows.index.fingerprint} {model_fingerprint}".encode() + rows.index.groups.astype(np.int64).tobytes()
    key = hashlib.sha256(content).hexdigest()[:16]
    path = cache / f"reference-{key}.npz"
    scored = _scored_responses(rows)
    stored = _kept_logps(path, scored)
    if stored is not None:
        say(f"reference log-probs: read from {path}")
        return stored
    layout = hashlib.sha256(f"{rows.budget} {rows.seed} {batch_rows}".encode()).hexdigest()[:8]
    partial = cache / f"reference-{key}-{layout}-partial.npz"
    settings = dict(batch_rows=batch_rows, mesh=mesh, partial=partial, workers=workers, at_batch=at_batch)
    found = score_responses(step, params, frozen, rows, description="reference log-probs", **settings)
    check_finite(found["logps"], scored, rows)
    first_acts(lambda: _keep_in_the_end(path, partial, found["logps"]))
    return found["logps"]


def _kept_pass(partial: epath.Path, empty: dict[str, np.ndarray], steps: int) -> tuple[int, dict[str, np.ndarray]] | None:
    """(batches done, what they gave) of a pass that was cut off, in all processes what the first one finds."""

    def read() -> dict[str, np.ndarray] | None:
        stored = read_sound_arrays(partial) or {}
        done = int(stored.pop("steps", -1))
        sound = 0 <= done <= steps and {n: x.shape for n, x in stored.items()} == {n: x.shape for n, x in empty.items()}
        return stored | {"steps": np.asarray(done)} if sound else None

    stored = first_reads(read)
    return None if stored is None else (int(stored.pop("steps")), {name: values.copy() for name, values in stored.items()})


def _kept_logps(path: epath.Path, scored: np.ndarray) -> np.ndarray | None:
    """The log-probs of a file, if there are as many as responses, and those of `scored` ones are finite; in all processes
    those that the first one reads."""

    def read() -> dict[str, np.ndarray] | None:
        logps = (read_sound_arrays(path) or {}).get("logps")
        if logps is None:
            return None
        if logps.shape != scored.shape or not np.isfinite(logps[scored]).all():
            say(f"{path}: has other responses, or log-probs that are not finite; it is computed anew")
            return None
        return {"logps": logps}

    stored = first_reads(read)
    return None if stored is None else stored["logps"]


def _keep_in_the_end(path: epath.Path, partial: epath.Path, logps: np.ndarray) -> None:
    _keep(path, logps=logps)
    retried(lambda: partial.unlink(missing_ok=True), f"{partial}")


def _keep(path: epath.Path, **arrays: np.ndarray) -> None:
    """What can be computed again ends no run where it cannot be kept."""
    try:
        write_arrays(path, **arrays)
    except (OSError, Unavailable) as error:
        say(f"{path}: reference log-probs cannot be kept there ({first_line(error)})")


def _scored_responses(rows: Rows) -> np.ndarray:
    """bool[responses]: those of the groups that `rows` keeps."""
    first = rows.index.first_responses
    scored = np.zeros(rows.index.responses, bool)
    for group in rows.index.groups:
        scored[first[group] : first[group + 1]] = True
    return scored


def check_finite(logps: np.ndarray, scored: np.ndarray, rows: Rows) -> None:
    """UserError that counts the responses whose reference is not finite, and names the record of the first."""
    wrong = np.flatnonzero(scored & ~np.isfinite(logps))
    if len(wrong):
        record = rows.examples.records[int(np.searchsorted(rows.index.first_responses, wrong[0], side="right")) - 1]
        raise UserError(
            f"{len(wrong)} of {scored.sum()} reference log-probs are not finite, the first is of record {record.id!r};"
            " check the checkpoint, or set model.dtype: float32"
        )


# What beside the weights decides what a model says of an example.
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")


def model_fingerprint(directory: epath.PathLike, **settings) -> str:
    """Identifies a checkpoint without reading it all: names, shapes and some KB of every tensor, and how it sees pictures."""
    directory = epath.Path(directory)
    digest = hashlib.sha256(strict_json.dumps(settings, sort_keys=True, default=str).encode())
    found = find_weight_files(Path(directory))
    for path in found.files:  # what else lies there is not the model
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for piece in retried(lambda path=path: list(sampled_bytes(path)), f"{path}"):
            digest.update(piece)
    if chosen := found.chosen(tensor_names):
        digest.update(strict_json.dumps(chosen, sort_keys=True).encode())
    for path in (directory / name for name in SETTINGS):
        if exists(path):
            digest.update(path.name.encode() + read_bytes(path))
    return digest.hexdigest()
