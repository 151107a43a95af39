"""A run's plan: its examples, packed rows, held-out rows, number of steps and identity, made before weights are loaded."""

from __future__ import annotations

from typing import Any, NamedTuple

from etils import epath

from mmrlhf_jax import config
from mmrlhf_jax.data.margin_text import ends, gate, left_out
from mmrlhf_jax.data.pipeline import count_rows
from mmrlhf_jax.data.stream import Rows
from mmrlhf_jax.huggingface.checkpoint import read_sizes
from mmrlhf_jax.huggingface.hub import local_directory
from mmrlhf_jax.huggingface.tokenizer import load_tokenizer
from mmrlhf_jax.models.registry import family_of
from mmrlhf_jax.progress import say
from mmrlhf_jax.sharding.agreement import same_everywhere, together
from mmrlhf_jax.tasks import (
    learnt_records,
    open_held_out_examples,
    open_training_examples,
    plan_training_rows,
    task_of,
    with_settled_objective,
)
from mmrlhf_jax.training.held_out import plan_held_out, say_shared
from mmrlhf_jax.training.identity import CONFIGURATION, run_identity
from mmrlhf_jax.training.learning import check_learning
from mmrlhf_jax.training.preflight import check_profile


class PlannedRun(NamedTuple):
    """`experiment` has numbers also for the settings that the data determine; the run uses it from here on. `held_out` is None
    if nothing is judged. `margins` is a summary of the training pairs' margins, if β depends on them
    (`Task.margin_summary`). The run takes `total_rows` rows in `steps` batches of `batch_rows`."""

    experiment: config.Experiment
    examples: Any
    source: epath.Path  # the model's directory
    rows: Rows
    held_out: Rows | None
    total_rows: int
    steps: int
    batch_rows: int
    identity: dict[str, Any]
    margins: dict[str, Any] | None

    @property
    def summary(self) -> str:
        """One line: groups, rows, how full the rows are, steps."""
        rows = self.rows
        return (
            f"{len(rows.index.groups)} groups in {rows.count(1)} rows of {rows.budget.slots} slots"
            f" ({rows.fill:.1%} filled), {self.steps} steps of {self.batch_rows} rows"
        )


def agreed_plan(experiment: config.Experiment) -> PlannedRun:
    """The plan, checked to be the same in all processes. UserError in all of them if one fails or has a different plan."""
    plan = together(lambda: plan_run(experiment))
    judged = None if plan.held_out is None else [plan.held_out.index.fingerprint, plan.held_out.identity]
    found = plan.identity | {"held-out data": judged}
    same_everywhere({name: value for name, value in found.items() if name != CONFIGURATION}, "the run")
    return plan


def plan_run(experiment: config.Experiment) -> PlannedRun:
    """Open the data, pack it into rows and count the steps; of the model only tokenizer and sizes are read."""
    run, batch = experiment.run, experiment.batch
    task = task_of(experiment.objective)
    examples = open_training_examples(experiment.data, task)
    task.check_examples(examples, experiment.data.named)
    judged = open_judged(experiment)
    if judged is not None:
        say_shared(examples, judged, experiment.data.held_out)
    source = local_directory(experiment.model.path)
    sizes = read_sizes(source, experiment.model.reward_head)
    check_learning(experiment, sizes)
    encoder = task.encoder(experiment.data, load_tokenizer(source), sizes)
    rows = plan_training_rows(examples, encoder, experiment.data, batch, task, seed=run.seed)
    task.check_learnable(rows.index, examples, encoder, experiment.data, experiment.data.named)
    from_data, experiment = experiment.objective.from_data, with_settled_objective(experiment, rows)
    margins = task.margin_summary(learnt_records(rows), encoder)
    held_out = None if judged is None else plan_held_out(judged, encoder, experiment, rows)
    total_rows = count_rows(rows, experiment)
    steps = -(-total_rows // batch.rows)
    check_profile(run, steps)
    identity = run_identity(experiment, rows, steps, source, family_of(sizes).parts.values(), from_data)
    return PlannedRun(experiment, examples, source, rows, held_out, total_rows, steps, batch.rows, identity, margins)


def say_margins(summary: dict[str, Any] | None) -> None:
    """Report what β(δ) does to the training pairs, and warn if it only switches between two values; nothing for None."""
    if summary is None:
        return
    if (rest := left_out(summary)) is not None:
        say(f"margins: {rest}")
    if summary["pairs"]:
        say(ends(summary))
        if (warning := gate(summary)) is not None:
            say(f"warning: {warning}")


def open_judged(experiment: config.Experiment):
    """The held-out examples; None if the experiment names none. UserError if nothing in them can be judged."""
    data, run = experiment.data, experiment.run
    if data.held_out is None:
        return None
    task = task_of(experiment.objective)
    examples = open_held_out_examples(data, task)
    task.check_examples(examples, data.held_out)
    if run.eval_every is None:
        say(f"{data.held_out} is judged once, after the last step; set run.eval_every to judge it more often")
    return examples
