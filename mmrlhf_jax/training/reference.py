"""Reference log-probs: one pass over the data, one number per response, stored under what they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from etils import epath

from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.faults import retried
from mmrlhf_jax.files import read_sound_arrays
from mmrlhf_jax.inference.scoring import keep_arrays, score_responses
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import first_acts, first_reads


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
    keep_arrays(path, logps=logps)
    retried(lambda: partial.unlink(missing_ok=True), f"{partial}")


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
