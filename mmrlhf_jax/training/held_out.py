"""Held-out data: packing it into rows, evaluating a model on it, and checking the metric that chooses the best checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

from mmrlhf_jax import config
from mmrlhf_jax.data.digests import comparable, media_names, prompt_digest
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import build_index
from mmrlhf_jax.data.over_budget import within_budget
from mmrlhf_jax.data.packing import wide_enough
from mmrlhf_jax.data.pipeline import demanded_budget, index_cache, list_changes
from mmrlhf_jax.data.rows import Budget, RowBatch, empty_row
from mmrlhf_jax.data.stream import Rows, batches
from mmrlhf_jax.errors import UserError
from mmrlhf_jax.models.registry import DEFAULT, family
from mmrlhf_jax.objectives import Outputs, merge, summary
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.feed import feed, fetched, own_rows
from mmrlhf_jax.tasks import Task, task_of
from mmrlhf_jax.training.record import as_number
from mmrlhf_jax.training.state import TrainState
from mmrlhf_jax.training.step import mean_loss

PREFIX = "eval_"  # as TRL logs them


def check_settings(experiment: config.Experiment) -> None:
    """UserError if settings about held-out data contradict each other, or `run.best` is no metric of the evaluation."""
    run = experiment.run
    if experiment.data.held_out is None:
        for key in ("eval_every", "best", "best_is"):
            if getattr(run, key) != config.Run.model_fields[key].default:
                raise UserError(f"run.{key} is set, and there is no held-out data to judge: set data.held_out, or leave it out")
        return
    known = figure_names(task_of(experiment.objective).without_data)
    if run.best not in known:
        raise UserError(f"run.best: the evaluation has no metric {run.best!r}; there are {', '.join(known)}")


def figure_names(task: Task) -> list[str]:
    """Names of the evaluation's scalar metrics, found by abstract evaluation (`jax.eval_shape`) of an empty row."""
    geometry = family(DEFAULT).typical_geometry()  # any will do: no term looks at media
    batch = jax.tree.map(lambda x: x[None], empty_row(Budget(8, 1, 1, 8, 8, 8), geometry))
    responses, tokens = jnp.zeros(batch.ends.shape, jnp.float32), jnp.zeros(batch.targets.shape, jnp.float32)
    outputs = Outputs(responses, responses, responses, responses, responses, tokens)

    statistics = {name: jnp.float32(value) for name, value in task.statistics.items()}

    def figures(batch: RowBatch, outputs: Outputs) -> dict[str, jax.Array]:
        return _figures(task, *task.terms(outputs, batch, jax.random.key(0), outputs, statistics))

    return sorted(name for name, value in jax.eval_shape(figures, batch, outputs).items() if value.ndim == 0)


def say_shared(training, judged, named: str) -> None:
    """Warn of data leakage: say how many held-out records share prompt and media with training records.

    Media are compared by content digest, or by name where either digest is unknown.
    """
    prompts = {prompt_digest(record) for record in training.records} & {prompt_digest(record) for record in judged.records}
    learnt: set[tuple[str, str | None]] = set()
    by_name = defaultdict(set)  # (prompt, media names) -> content digests
    for _, prompt, names, content in _asked(training, prompts):
        learnt.add((prompt, content))
        by_name[prompt, names].add(content)

    def seen(prompt: str, names: str, content: str | None) -> bool:
        unknown = any(not comparable(content, other) for other in by_name[prompt, names])
        return unknown or (content is not None and (prompt, content) in learnt)

    shared = [record_id for record_id, *asked in _asked(judged, prompts) if seen(*asked)]
    if shared:
        say(
            f"data.held_out, {named}: {len(shared)} of {len(judged.records)} records have prompts and media that training"
            f" records have (the first is {shared[0]!r}), so that eval_ figures are too good"
        )


def _asked(examples, prompts: set[str]) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield (id, prompt digest, digest of media names, digest of media content) of every record with one of `prompts`."""
    if prompts:
        _ = examples.fingerprint  # computing it digests all media; `media_content` then reads none again
    for place, record in enumerate(examples.records):
        if (prompt := prompt_digest(record)) in prompts:
            yield record.id, prompt, media_names(record), examples.media_content(place)


def plan_held_out(examples, encoder: GroupEncoder, experiment: config.Experiment, training: Rows) -> Rows:
    """Pack all held-out groups that can be judged into rows of the training rows' size.

    A group that exceeds a limit set in `batch` is treated as `data.over_budget` says. A limit that was derived from the
    training data is raised where a held-out group needs more.
    """
    index = dataclasses.replace(build_index(examples, encoder, cache=index_cache(examples)), weights=None)
    data, task, named = experiment.data, task_of(experiment.objective), f"data.held_out, {experiment.data.held_out}"
    index = task.judged_groups(index, examples, data, named)
    index = within_budget(index, examples, encoder, demanded_budget(experiment.batch), data.over_budget, named)
    list_changes(index, data.held_out, len(examples))
    task.check_learnable(index, examples, encoder, data, named)
    return Rows(examples, encoder, index, Budget(*wide_enough(training.budget.vector, index.sizes)), experiment.run.seed)


def fingerprint(rows: Rows) -> str:
    """A digest of the judged groups and their data (rewards included); independent of how they are packed into rows."""
    groups = np.asarray(rows.index.groups, np.int64)
    return hashlib.sha256(rows.index.fingerprint.encode() + groups.tobytes()).hexdigest()


def evaluate(
    eval_step,
    state: TrainState,
    rows: Rows,
    task: Task,
    *,
    batch_rows: int,
    mesh,
    workers: int = 0,
    at_batch: Callable[[int], None] = lambda number: None,
) -> dict[str, float | list[float]]:
    """Loss and metrics as exact means over all groups of `rows`; their names have the prefix `eval_`.

    `at_batch` is called with the number of every batch; `workers` is passed to `batches`.
    """
    count = rows.count(1)
    settings = dict(batch_rows=batch_rows, steps=-(-count // batch_rows), total=count, workers=workers)

    def results():
        with contextlib.closing(batches(rows, mine=own_rows(mesh, batch_rows), **settings)) as stream:
            for number, batch in enumerate(feed(stream, mesh)):
                at_batch(number)
                yield eval_step(state, batch)

    sums, metrics = reduce(lambda a, b: (merge(a[0], b[0]), merge(a[1], b[1])), fetched(results()))
    return {name: as_number(value) for name, value in _figures(task, sums, metrics).items()}


def _figures(task: Task, sums, metrics) -> dict[str, jax.Array]:
    return {f"{PREFIX}{name}": value for name, value in (summary(metrics) | {"loss": mean_loss(task, sums)}).items()}
