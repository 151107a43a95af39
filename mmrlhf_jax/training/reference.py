"""Reference log-probs: computed in one pass over the data, one number per response, cached by a digest of their inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.pipeline import index_cache, with_reference
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import can_write, read_sound_arrays
from mmrlhf_jax.huggingface.fingerprint import model_fingerprint
from mmrlhf_jax.inference.scoring import keep_arrays, make_scoring_step, score_responses
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import first_acts, first_decides, first_reads
from mmrlhf_jax.training.base import Base
from mmrlhf_jax.training.identity import computed_precision
from mmrlhf_jax.training.planned import PlannedRun


def with_reference_logps(
    plan: PlannedRun, base: Base, experiment: config.Experiment, mesh, at_batch: Callable[[int], None]
) -> PlannedRun:
    """The plan with the base model's log-probs added to its rows and held-out rows; `at_batch` is called with every batch's
    number."""
    batch = experiment.batch
    step = make_scoring_step(base.graphdef, chunk=batch.logprob_chunk)
    scorer = model_fingerprint(plan.source, **computed_precision(experiment))
    settings = dict(batch_rows=batch.rows // batch.accumulation, mesh=mesh, workers=experiment.data.workers, at_batch=at_batch)
    settings["cache"] = reference_cache(plan.examples, epath.Path(experiment.run.directory))

    def scored(rows: Rows) -> np.ndarray:
        return reference_logps(step, base.params, base.frozen, rows, scorer, **settings)

    rows, held_out = plan.rows, plan.held_out
    plan = plan._replace(rows=with_reference(rows, scored(rows.once())))
    return plan if held_out is None else plan._replace(held_out=with_reference(held_out, scored(held_out)))


def reference_cache(examples, directory: epath.Path) -> epath.Path:
    """The cache directory: beside the data, so that other runs share it, or in the run's directory if that cannot be
    written."""
    beside = index_cache(examples)
    if beside is None or not first_decides(lambda: can_write(beside)):
        return directory / "reference"
    return beside


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
    """float32[responses], read from `cache` if data, encoder, kept groups and model are unchanged, else computed and cached.

    Responses of groups that `rows` leaves out are NaN. UserError that names the record if any other one is not finite.
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


def _kept_logps(path: epath.Path, scored: np.ndarray) -> np.ndarray | None:
    """The log-probs stored at `path`, if their number fits and those of `scored` responses are finite; else None. The first
    process reads; all processes get its result."""

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
    keep_arrays(path, logps=logps)
    retried(lambda: partial.unlink(missing_ok=True), f"{partial}")


def _scored_responses(rows: Rows) -> np.ndarray:
    """bool[responses]: True for responses of the groups that `rows` keeps."""
    first = rows.index.first_responses
    scored = np.zeros(rows.index.responses, bool)
    for group in rows.index.groups:
        scored[first[group] : first[group + 1]] = True
    return scored


def check_finite(logps: np.ndarray, scored: np.ndarray, rows: Rows) -> None:
    """UserError if the log-prob of a scored response is not finite; it counts them and names the first one's record."""
    wrong = np.flatnonzero(scored & ~np.isfinite(logps))
    if len(wrong):
        record = rows.examples.records[int(np.searchsorted(rows.index.first_responses, wrong[0], side="right")) - 1]
        raise UserError(
            f"{len(wrong)} of {scored.sum()} reference log-probs are not finite, the first is of record {record.id!r};"
            " check the checkpoint, or set model.dtype: float32"
        )
