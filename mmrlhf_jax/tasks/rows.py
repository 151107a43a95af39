"""Packs the groups that a task learns from into rows: measure them, bring them within the row budget, plan rows; and settles
the settings that these groups determine."""

from __future__ import annotations

from mmrlhf_jax import config
from mmrlhf_jax.data.encode import GroupEncoder
from mmrlhf_jax.data.index import build_index
from mmrlhf_jax.data.over_budget import within_budget
from mmrlhf_jax.data.pipeline import demanded_budget, index_cache, list_changes, row_budget
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.progress import track
from mmrlhf_jax.records import RankedRecord
from mmrlhf_jax.tasks.registry import task_of
from mmrlhf_jax.tasks.task import Task


def plan_training_rows(
    examples, encoder: GroupEncoder, data: config.Data, batch: config.Batch, task: Task, *, seed: int
) -> Rows:
    """Measure all groups, determine the row budget and plan rows. Groups that are left out are counted and listed."""
    index = build_index(examples, encoder, cache=index_cache(examples), progress=track)
    index = task.learnt_groups(index, examples, data, data.named)
    # First apply the limits that the experiment sets; the others are then derived from the groups that remain.
    index = within_budget(index, examples, encoder, demanded_budget(batch), data.over_budget, data.named)
    list_changes(index, data.named, len(examples))
    return Rows(examples, encoder, index, row_budget(batch, index), seed)


def learnt_records(rows: Rows) -> list[RankedRecord]:
    """The records of the groups that are kept."""
    return [rows.examples.records[g] for g in rows.index.groups]


def with_settled_objective(experiment: config.Experiment, rows: Rows) -> config.Experiment:
    """The experiment with numbers for the settings of its objective that the training `rows` determine (`Task.settled`)."""
    settled = task_of(experiment.objective).settled(learnt_records(rows), rows.encoder, experiment.data.named)
    return experiment.model_copy(update={"objective": settled})
